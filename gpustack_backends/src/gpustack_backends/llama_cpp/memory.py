"""How much memory llama.cpp takes: weights, cache, compute buffers, and the process itself.

Weights and cache are counted by ``gpustack.plugin.memory``; what is here is llama.cpp's own: how it lays out its
context, what it computes in, and what its server keeps of old prompts. The formulas of the buffers were found by
reading what it logs for models of many shapes; tests hold them against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpustack.plugin import ModelFacts, Refused, ResourceClaim
from gpustack.plugin.memory import (
    Cache,
    Extra,
    cache_bytes,
    costs_of,
    extra_bytes,
    forgetting_bytes,
    weight_bytes,
)
from gpustack.plugin.memory.instance import inner_width
from gpustack_backends.llama_cpp.parameters import Parameters

_MIB = 1 << 20

#: Longest context of one request when the user asks for none: longer ones cost memory that few need.
DEFAULT_CONTEXT = 8192
#: The same for embeddings and reranking, where a whole input is computed at a time.
DEFAULT_INPUT = 2048
DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 2048
DEFAULT_UBATCH = 512
#: Where not all layers fit on GPUs, so many equal steps are tried from all to none.
_STEPS = 8
#: What the launcher keeps of old prompts, in MiB; -1 has no limit, counted as llama.cpp's own default.
_CACHE_RAM, _CACHE_RAM_UNLIMITED = 256, 8192
#: The process without a GPU's runtime, and what each word of the vocabulary takes in its tables.
_PROCESS, _WORD = 34 * _MIB, 420
#: Cells of the context are taken in multiples of this.
_PAGE = 256
#: Tokens between two copies of windows and states that a slot keeps to go back to, how many of them it keeps at most,
#: and those that it makes near the end of every prompt.
_CHECKPOINT_STEP, _CHECKPOINTS, _CHECKPOINTS_AT_END = 8192, 32, 2

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

#: Types that the cache may have.
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
#: Types of weights that every processor computes with as they are in the file. Others may be copied into another
#: order, and the mapped pages are not used again.
_AS_THEY_ARE = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})


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


def claim(model: ModelFacts, parameters: Parameters, gpus: int, version: str = "") -> ResourceClaim:
    """Return the memory of one instance on ``gpus`` GPUs (0: on the CPU), which take the same number of layers each."""
    if (
        divided := _divided(model, parameters, version, layers_on_gpus(model, parameters) if gpus else 0)
    ) is None:
        return _on_cpu(model, parameters)
    return divided.evenly(_shares(parameters, gpus) or (1,) * gpus)


def ways(model: ModelFacts, parameters: Parameters, gpus: int, version: str = "") -> list[ResourceClaim]:
    """Return the claims of all ways to use up to ``gpus`` GPUs, the best first.

    The fewest GPUs come first: 1, 2, 4 … of them evenly, and as many as they have room for unevenly; then fewer and
    fewer layers there. What the user said of layers and shares stays as it is.
    """
    layers = layers_on_gpus(model, parameters)
    whole = _divided(model, parameters, version, layers)
    if whole is None:
        return [_on_cpu(model, parameters)]
    if shares := _shares(parameters, gpus):
        return [whole.evenly(shares)]
    if parameters.get("--split-mode") == "none":
        main = parameters.integer("--main-gpu", 0, least=0)
        if main >= gpus:
            raise Refused(f"--main-gpu {main} is not there: GPUs are counted from 0, and there are {gpus}")
        return [whole.evenly((0,) * main + (1,))]
    counts = [1 << power for power in range(gpus.bit_length()) if 1 << power < gpus]
    # Rows of tensors are not divided by layers.
    if not whole.pieces or parameters.get("--split-mode") not in (None, "layer"):
        return [whole.evenly((1,) * count) for count in (*counts, gpus)]
    found: list[ResourceClaim] = []
    for count in (*counts, gpus):
        if count > 2:
            found.append(whole.as_there_is_room(count - 1, partial=False))
        found.append(whole.evenly((1,) * count))
        if count > 1:
            found.append(whole.as_there_is_room(count, partial=False))
    found = list(dict.fromkeys(found))
    if parameters.get("--gpu-layers") in (None, "auto"):
        fewer = dict.fromkeys(layers * step // _STEPS for step in reversed(range(1, _STEPS)))
        parts = (_divided(model, parameters, version, each) for each in fewer if each)
        found += [each.as_there_is_room(gpus, partial=True) for each in parts if each is not None]
    return found


@dataclass(frozen=True, slots=True)
class _Divided:
    """A model with some layers on GPUs."""

    #: Claim on RAM.
    ram: int
    mapped: int
    #: What all layers there take together, with their cache, and what each of them does; nothing when that is not known.
    #: The output head is the last one.
    there: int
    pieces: tuple[int, ...]
    #: Buffers and runtime of each GPU.
    each: int

    def evenly(self, shares: Sequence[float]) -> ResourceClaim:
        """Return the claim on as many GPUs as ``shares``, each with what the largest share of layers takes."""
        largest = self.there
        if len(shares) > 1:
            runs = _runs(self.pieces or (1,) * 64, shares)
            total = sum(self.pieces) or 64
            largest = -(-self.there * max(sum(run) for run in runs) // total)
        gpus = len(shares)
        return ResourceClaim(ram=self.ram, vram=(largest + self.each) * gpus, gpus=gpus, mapped=self.mapped)

    def as_there_is_room(self, gpus: int, *, partial: bool) -> ResourceClaim:
        """Return the claim on up to so many GPUs, each with as many layers as it has room for."""
        *layers, head = self.pieces
        piece = max(1, max(layers, default=head))
        return ResourceClaim.in_pieces(
            len(self.pieces),
            piece,
            gpus=gpus,
            ram=self.ram,
            each=self.each,
            last=max(0, head - piece),
            mapped=self.mapped,
            partial=partial,
        )


def _runs(pieces: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """Divide the layers as llama.cpp does: each goes to the first GPU whose shares and those before it reach beyond."""
    total = sum(shares)
    ends = [sum(shares[: number + 1]) / total for number in range(len(shares))]
    runs: list[list[int]] = [[] for _ in shares]
    for number, size in enumerate(pieces):
        at = next((gpu for gpu, end in enumerate(ends) if end > number / len(pieces)), len(shares) - 1)
        runs[at].append(size)
    return runs


def _shares(parameters: Parameters, gpus: int) -> tuple[float, ...]:
    """Return what the user says of the shares of GPUs, to the last that has one; nothing when that is left to us."""
    text = parameters.get("--tensor-split")
    if text is None:
        return ()
    try:
        shares = [float(each) for each in re.split("[,/]", text)]
    except ValueError:
        shares = []
    if not any(shares) or not all(math.isfinite(each) and each >= 0 for each in shares):
        raise Refused(f"--tensor-split needs a share for each GPU, as in 3,1, not {text!r}")
    while not shares[-1]:
        shares.pop()
    if len(shares) > gpus:
        raise Refused(
            f"--tensor-split has shares for {len(shares)} GPUs, and there {'is' if gpus == 1 else 'are'} {gpus}"
        )
    return tuple(shares)


def _on_cpu(model: ModelFacts, parameters: Parameters) -> ResourceClaim:
    shape = Shape.of(model, parameters)
    extra = extra_bytes(model, _extras(parameters))
    weights = weight_bytes(model) + extra
    mapped = _mapped(model, parameters) + (extra if _maps(parameters) else 0)
    buffers = kv_cache(model, shape, parameters) + compute_buffers(model, shape, parameters)
    return ResourceClaim(ram=weights + buffers + _host(model, shape, parameters), mapped=mapped)


def _host(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    return _PROCESS + _WORD * model.vocabulary + _prompts(model, shape, parameters)


def _divided(model: ModelFacts, parameters: Parameters, version: str, layers: int) -> _Divided | None:
    """Return what it takes to have ``layers`` on GPUs; None for none."""
    if layers == 0:
        return None
    shape = Shape.of(model, parameters)
    kv, compute = kv_cache(model, shape, parameters), compute_buffers(model, shape, parameters)
    costs = costs_of("llama-cpp", version)
    there = _weights_on_gpus(model, layers)
    # A tied table is the output head there and is looked up here.
    here = weight_bytes(model) - there + (model.embedding_bytes if there == weight_bytes(model) else 0)
    # The output head, which is the first to go there, keeps no cache.
    part = min(1.0, (layers - 1) / model.layers) if model.layers else 1.0
    kv_there = 0 if parameters.has("--no-kv-offload") else int(kv * part)
    return _Divided(
        ram=here + kv - kv_there + costs.host + _host(model, shape, parameters),
        mapped=here if _maps(parameters) else 0,
        there=there + kv_there,
        pieces=_pieces(model, layers, there, kv_there),
        # Files that are loaded besides go to one GPU; which, the shares do not say.
        each=compute + costs.runtime + extra_bytes(model, _extras(parameters)),
    )


def _pieces(model: ModelFacts, layers: int, weights: int, kv: int) -> tuple[int, ...]:
    """Return what each of the last ``layers`` takes: weights and its part of the cache; the output head is one of them."""
    if not model.layers:
        return ()
    own = list(model.layer_bytes[len(model.layer_bytes) - layers + 1 :] if layers > 1 else ())
    if len(own) != layers - 1:
        own = [weights // layers] * (layers - 1)
    each = -(-kv // max(1, layers - 1))
    return (*(size + each for size in own), max(0, weights - sum(own)))


def kv_cache(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes that the cache of the whole context takes."""
    cache = _cache(shape, parameters)
    if model.architecture in _ENCODERS:
        return 0
    if not (model.layers and (model.key_length or model.state_elements)):
        # Seen over many models: 8192 tokens take about an eighth of the weights.
        return int(model.weight_bytes / 8 * shape.total / DEFAULT_CONTEXT)
    return cache_bytes(model, cache)


def _cache(shape: Shape, parameters: Parameters) -> Cache:
    unified = _unified(parameters)
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


def compute_buffers(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes of intermediate results: of the widest part of a layer, and of what masks the context."""
    cache = _cache(shape, parameters)
    # Slots of their own are computed side by side, each with its part of the tokens.
    streams = 1 if cache.shared else cache.sequences
    keeps = model.key_length and model.architecture not in _ENCODERS
    cells = [cache.cells // streams] if keeps and model.state_layers < model.layers else []
    if model.window_layers and keeps:
        cells.append(cache.window_cells(model.sliding_window) // streams)
    if model.architecture in _ENCODERS:
        cells = [shape.ubatch]
    # What comes out: the scores of the next token, or vectors.
    scores = 4 * shape.parallel * (model.hidden_size if is_whole_input(model) else model.vocabulary)
    if parameters.get("--flash-attn") == "off":
        masks = 4 * sum(cells)
        attention = 4 * (model.attention_heads * max(cells, default=0) + _attention_row(model))
        return shape.ubatch * (masks + max(attention, 4 * _widest_row(model))) + scores
    return shape.ubatch * (2 * sum(cells) + 4 * max(_widest_row(model), _attention_row(model))) + scores


def _widest_row(model: ModelFacts) -> int:
    """Return the elements that a token takes in the widest of the feed-forward or state parts."""
    rows = 5 * model.hidden_size + 3 * inner_width(model) + model.experts_used * model.hidden_size
    if model.state_layers and not model.inner_size:
        # Twice the inner width enters, passes a convolution and is gated; it is twice the hidden size.
        return 2 * model.hidden_size + 13 * model.hidden_size
    return rows


def _attention_row(model: ModelFacts) -> int:
    heads, hidden = model.attention_heads, model.hidden_size
    if model.latent_rank:
        # Queries as they come, in the compressed space, and joined; then values there and expanded.
        latent, both = model.latent_rank, model.latent_rank + model.rotary_length
        return (
            2 * hidden
            + heads * (2 * model.latent_head_length + model.rotary_length + latent + both)
            + 2 * both
        )
    queries = heads * max(model.key_length, model.value_length)
    return 2 * hidden + 4 * queries + model.kv_heads * (model.key_length + model.value_length)


def _prompts(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes of what the server keeps of earlier prompts, beside the context."""
    if is_whole_input(model):
        return 0
    kept = parameters.integer("--cache-ram", _CACHE_RAM, least=-1)
    prompts = (kept if kept >= 0 else _CACHE_RAM_UNLIMITED) * _MIB
    if parameters.has("--no-cache-prompt"):
        prompts = 0
    return prompts + _checkpoints(model, shape, parameters)


def _checkpoints(model: ModelFacts, shape: Shape, parameters: Parameters) -> int:
    """Return the bytes of copies of windows and states, which cannot be rolled back otherwise."""
    if parameters.has("--swa-full"):
        return 0
    one = replace(_cache(shape, parameters), context=shape.context, sequences=1, shared=False)
    count = min(_CHECKPOINTS, _CHECKPOINTS_AT_END + shape.context // _CHECKPOINT_STEP)
    return forgetting_bytes(model, one) * count * shape.parallel


# Weights ------------------------------------------------------------------------------------------------


def layers_on_gpus(model: ModelFacts, parameters: Parameters) -> int:
    """Return how many layers go to GPUs; the output head counts as one more."""
    whole = model.layers + 1
    if parameters.get("--gpu-layers") in (None, "all", "auto"):
        return whole
    layers = parameters.integer("--gpu-layers", -1, least=-1)
    if layers < 0:
        return whole
    return min(whole, layers) if model.layers else layers


def _weights_on_gpus(model: ModelFacts, layers: int) -> int:
    """Return the bytes of the last ``layers``: the output head leaves RAM first, the table of embeddings never."""
    total = weight_bytes(model)
    if not model.layer_bytes:
        return int(total * min(1.0, layers / (model.layers + 1))) if model.layers else total
    head = model.output_bytes or model.embedding_bytes
    if layers > len(model.layer_bytes):
        return total if not model.output_bytes else total - model.embedding_bytes
    return sum(model.layer_bytes[len(model.layer_bytes) - layers + 1 :]) + (head if layers else 0)


def _mapped(model: ModelFacts, parameters: Parameters) -> int:
    """Return the bytes of weights that are used where the file is mapped."""
    if not _maps(parameters):
        return 0
    if parameters.has("--no-repack"):
        return weight_bytes(model)
    return sum(size for kind, size in model.bytes_by_type if kind in _AS_THEY_ARE)


def _maps(parameters: Parameters) -> bool:
    mode = (parameters.get("--load-mode") or parameters.get("-lm") or "mmap").lower()
    return mode == "mmap" and not parameters.has("--no-mmap")


def _extras(parameters: Parameters) -> Iterator[Extra]:
    """Yield the files that are loaded besides the model."""
    for each in parameters.given:
        match each.flag, each.value:
            case ("--mmproj" | "-mm", str(path)):
                yield Extra(kind="projector", path=path)
            case ("--lora", str(paths)):
                yield from (Extra(kind="adapter", path=path) for path in paths.split(","))
            case ("--lora-scaled", str(paths)):
                yield from (Extra(kind="adapter", path=path.rpartition(":")[0]) for path in paths.split(","))
            case ("--model-draft" | "-md", str(path)):
                yield Extra(kind="draft", path=path)


# Parameters ---------------------------------------------------------------------------------------------


def _cache_type(parameters: Parameters, flag: str) -> str:
    name = (parameters.get(flag) or "f16").lower()
    if name not in _CACHE_TYPES:
        raise Refused(f"{flag} must be one of {', '.join(_CACHE_TYPES)}, not {name!r}")
    return name


def _unified(parameters: Parameters) -> bool:
    return parameters.has("--kv-unified") and not parameters.has("--no-kv-unified")
