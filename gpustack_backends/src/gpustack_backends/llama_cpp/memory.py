"""How much memory llama.cpp takes: weights, KV cache, compute buffers, and the process itself."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.plugin import ModelFacts, Refused, ResourceClaim
from gpustack_backends.llama_cpp.parameters import Parameters

_MIB = 1 << 20

#: Longest context of one request when the user asks for none: longer ones cost memory that few need.
DEFAULT_CONTEXT = 8192
#: The same for embeddings and reranking, where a whole input is computed at a time.
DEFAULT_INPUT = 2048
DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
#: What the launcher keeps of old prompts, in MiB; -1 has no limit, counted as llama.cpp's own default.
_CACHE_RAM, _CACHE_RAM_UNLIMITED = 256, 8192
#: The process with its libraries; with a GPU's runtime, and what that takes on each GPU.
_PROCESS, _PROCESS_GPU, _RUNTIME_GPU = 96 * _MIB, 512 * _MIB, 400 * _MIB

#: Architectures that read the whole input at once and keep nothing.
_ENCODERS = (
    "bert",
    "modern-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "jina-bert-v2",
    "jina-bert-v3",
)

#: Bytes of one element of a cache type; the quantised ones come in blocks with a scale.
_CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


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
    def of(cls, model: ModelFacts, parameters: Parameters) -> Shape:
        """Work them out.

        llama.cpp divides its context among its slots, so that ``--ctx-size 8192`` with four slots would refuse
        prompts over 2048 tokens. Here ``--ctx-size`` is what one request may have, and the engine gets the
        multiple; with ``--kv-unified`` the slots share it, at the risk that all fail together when it is full.
        """
        whole = is_whole_input(model)
        parallel = parameters.integer("--parallel", DEFAULT_PARALLEL, least=1)
        own = model.context_length
        default = DEFAULT_INPUT if whole else DEFAULT_CONTEXT
        context = parameters.integer("--ctx-size", min(own or default, default), least=0) or own or default
        total = context if _unified(parameters) else context * parallel
        batch = parameters.integer("--batch-size", max(DEFAULT_BATCH, context if whole else 0), least=1)
        ubatch = parameters.integer("--ubatch-size", max(DEFAULT_UBATCH, context if whole else 0), least=1)
        return cls(context=context, parallel=parallel, total=total, batch=batch, ubatch=min(ubatch, batch))


def is_whole_input(model: ModelFacts) -> bool:
    """Tell whether an input must be computed in one piece."""
    return model.categories[:1] in (("embedding",), ("reranker",))


def claim(model: ModelFacts, parameters: Parameters, gpus: int) -> ResourceClaim:
    """Return the memory of one instance on ``gpus`` GPUs (0: on the CPU)."""
    shape = Shape.of(model, parameters)
    kv, compute = kv_cache(model, shape, parameters), compute_buffers(model, shape, parameters)
    kept = parameters.integer("--cache-ram", _CACHE_RAM, least=-1)
    prompts = 0 if is_whole_input(model) else (kept if kept >= 0 else _CACHE_RAM_UNLIMITED) * _MIB
    on_gpu = offloaded(model, parameters) if gpus else 0.0
    if on_gpu == 0:
        return ResourceClaim(ram=model.weight_bytes + kv + compute + _PROCESS + prompts)
    kv_gpu = 0.0 if parameters.has("--no-kv-offload") else on_gpu
    vram = model.weight_bytes * on_gpu + kv * kv_gpu + (compute + _RUNTIME_GPU) * gpus
    ram = model.weight_bytes * (1 - on_gpu) + kv * (1 - kv_gpu) + _PROCESS_GPU + prompts
    return ResourceClaim(ram=int(ram), vram=int(vram), gpus=gpus)


def offloaded(model: ModelFacts, parameters: Parameters) -> float:
    """Return the part of the model that goes to GPUs, from 0 to 1."""
    if parameters.get("--gpu-layers") in (None, "all", "auto"):
        return 1.0
    layers = parameters.integer("--gpu-layers", -1, least=-1)
    if layers < 0:
        return 1.0
    # The output layer counts as one more.
    return min(1.0, layers / (model.layers + 1)) if model.layers else float(layers > 0)


def kv_cache(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes of all keys and values of the whole context."""
    if model.architecture in _ENCODERS:
        return 0
    heads = model.kv_heads or model.attention_heads
    size = model.hidden_size // model.attention_heads if model.attention_heads else 0
    keys, values = model.key_length or size, model.value_length or size
    if not (model.layers and heads and keys and values):
        # Seen over many models: 8192 tokens take about an eighth of the weights.
        return int(model.weight_bytes / 8 * shape.total / DEFAULT_CONTEXT)
    of_key = _cache_type(parameters, "--cache-type-k") * keys
    of_value = _cache_type(parameters, "--cache-type-v") * values
    padded = -(-shape.total // 256) * 256
    return int(padded * model.layers * heads * (of_key + of_value))


def compute_buffers(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes of intermediate results: some rows of the hidden size, and the scores of all tokens.

    Without flash attention come the scores of each token for each other one.
    """
    row = 10 * model.hidden_size + (0 if is_whole_input(model) else model.vocabulary)
    if parameters.get("--flash-attn") == "off":
        row += model.attention_heads * shape.context
    return 4 * shape.ubatch * row


def _cache_type(parameters: Parameters, flag: str) -> float:
    name = (parameters.get(flag) or "f16").lower()
    if name not in _CACHE_TYPES:
        raise Refused(f"{flag} must be one of {', '.join(_CACHE_TYPES)}, not {name!r}")
    return _CACHE_TYPES[name]


def _unified(parameters: Parameters) -> bool:
    return parameters.has("--kv-unified") and not parameters.has("--no-kv-unified")
