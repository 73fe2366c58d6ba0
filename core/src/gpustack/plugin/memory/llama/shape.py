"""How many tokens an engine made of llama.cpp keeps and computes at a time, by its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.plugin.errors import Refused
from gpustack.plugin.memory.cache import Cache
from gpustack.plugin.memory.llama.parameters import Parameters
from gpustack.plugin.values import ModelFacts

#: Longest context of one request when the user asks for none: longer ones cost memory that few need.
DEFAULT_CONTEXT = 8192
#: The same for embeddings and reranking, where a whole input is computed at a time.
DEFAULT_INPUT = 2048
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
#: Cells of the context are taken in multiples of this.
_PAGE = 256

#: Types that the cache may have.
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How one engine made of llama.cpp differs from the others in what it takes. Sizes are in MiB."""

    #: Its name in :func:`gpustack.plugin.memory.costs_of`.
    costs: str = "llama-cpp"
    #: Requests at a time when the user says nothing; of models that need their input whole, or make pictures.
    parallel: int = 4
    parallel_inputs: int = 4
    #: All requests share one context unless the parameters say otherwise.
    shares: bool = False
    #: What is kept of old prompts in RAM beside the context; the limit that -1 stands for.
    kept_prompts: int = 256
    kept_prompts_unlimited: int = 8192
    #: Copies of windows and states are kept to go back to.
    checkpoints: bool = True
    #: Files are mapped unless the parameters say otherwise.
    maps: bool = True


LLAMA_CPP = Engine()


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes an instance runs with, in tokens."""

    #: Context of one request.
    context: int
    #: Requests at a time.
    parallel: int
    #: Context of the engine as a whole.
    total: int
    batch: int
    ubatch: int

    @classmethod
    def of(cls, model: ModelFacts, parameters: Parameters, engine: Engine = LLAMA_CPP) -> Shape:
        """Work them out.

        llama.cpp divides its context among its slots, so that ``--ctx-size 8192`` with four slots would refuse
        prompts over 2048 tokens. Here ``--ctx-size`` is what one request may have, and the engine gets the
        multiple; with ``--kv-unified`` the slots share it, at the risk that all fail together when it is full. An
        engine that ``shares`` does that always.
        """
        whole = is_whole_input(model)
        usual = engine.parallel_inputs if whole or model.categories[:1] == ("image",) else engine.parallel
        parallel = parameters.integer("--parallel", usual, least=1)
        own = model.context_length
        default = DEFAULT_INPUT if whole else DEFAULT_CONTEXT
        context = parameters.integer("--ctx-size", min(own or default, default), least=0) or own or default
        total = context if is_unified(parameters, engine) else context * parallel
        batch = parameters.integer("--batch-size", max(DEFAULT_BATCH, context if whole else 0), least=1)
        ubatch = parameters.integer("--ubatch-size", max(DEFAULT_UBATCH, context if whole else 0), least=1)
        return cls(context=context, parallel=parallel, total=total, batch=batch, ubatch=min(ubatch, batch))


def is_whole_input(model: ModelFacts) -> bool:
    """Tell whether an input must be computed in one piece."""
    return model.categories[:1] in (("embedding",), ("reranker",))


def cache_of(shape: Shape, parameters: Parameters, engine: Engine = LLAMA_CPP) -> Cache:
    """Return the cache of the whole context. Raises Refused for a type that it cannot have."""
    unified = is_unified(parameters, engine)
    return Cache(
        context=shape.total if unified else shape.context,
        sequences=shape.parallel,
        key_type=_cache_type(parameters, "--cache-type-k"),
        value_type=_cache_type(parameters, "--cache-type-v"),
        page=_PAGE,
        step=shape.ubatch,
        shared=unified,
        full_windows=parameters.has("--swa-full"),
    )


def _cache_type(parameters: Parameters, flag: str) -> str:
    name = (parameters.get(flag) or "f16").lower()
    if name not in _CACHE_TYPES:
        raise Refused(f"{flag} must be one of {', '.join(_CACHE_TYPES)}, not {name!r}")
    return name


def is_unified(parameters: Parameters, engine: Engine = LLAMA_CPP) -> bool:
    """Tell whether all requests share one context."""
    return engine.shares or (parameters.has("--kv-unified") and not parameters.has("--no-kv-unified"))
