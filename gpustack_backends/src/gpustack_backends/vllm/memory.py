"""How much memory vLLM takes, and the context that fits: the same at every call for the same GPUs.

vLLM would take nine tenths of a card whatever the model. Here it gets a cache of a size that is known before it
starts, so what is left of the card is free for others, and what a start measures corrects the next estimate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpustack.plugin import EstimateRequest, GpuDevice, ModelFacts, ResourceClaim
from gpustack.plugin.memory import (
    Cache,
    Division,
    Extra,
    Need,
    Workload,
    cache_bytes,
    costs_of,
    divisions_by_context,
    estimate,
    extra_bytes,
    weight_bytes,
)
from gpustack_backends.vllm.parameters import Asked

_GIB = 1 << 30
#: Longest contexts, in tokens, when the user asks for none; the first that fits is taken. As many tokens are kept of
#: shorter requests together.
_CONTEXTS = (32768, 16384, 8192, 4096, 2048)
_CONTEXT_ON_CPU = 8192
#: Tokens of a request that is neither short nor long.
_USUAL_REQUEST = 2048
#: A card is never filled to the brim: its driver and the display take some.
_USABLE = 0.92
_NARROW = ("F16", "FP16", "BF16", "BFLOAT16")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that an instance runs with, in tokens."""

    #: Of one request.
    context: int
    #: Of all that are kept.
    tokens: int


def is_pooling(model: ModelFacts) -> bool:
    """Tell whether the model makes a vector or a score of a whole input."""
    return model.categories[:1] in (("embedding",), ("reranker",))


def shape_of(
    model: ModelFacts, asked: Asked, division: Division, devices: Sequence[GpuDevice], version: str
) -> Shape:
    """Return the longest context that fits the smallest of ``devices``; the shortest when none does."""
    if not devices:
        return next(_shapes(model, asked, (_CONTEXT_ON_CPU,)))
    room = min(each.memory_total for each in devices) * _USABLE
    shape = Shape(0, 0)
    for shape in _shapes(model, asked, _CONTEXTS):
        if need_of(model, asked, shape, division, devices, version).vram <= room:
            break
    return shape


def _shapes(model: ModelFacts, asked: Asked, limits: Sequence[int]) -> Iterator[Shape]:
    for limit in limits:
        context = asked.context or min(model.context_length or limit, limit)
        # What computes an input at once keeps nothing of others.
        yield Shape(context, context if is_pooling(model) else max(limit, context))


def need_of(
    model: ModelFacts,
    asked: Asked,
    shape: Shape,
    division: Division,
    devices: Sequence[GpuDevice],
    version: str,
) -> Need:
    """Return what one GPU of the instance takes. Raises Refused for a division that the model does not allow."""
    step = asked.step(min(each.memory_total for each in devices))
    work = Workload(
        cache=_cache(asked, shape),
        step=max(step, shape.context) if is_pooling(model) else step,
        graphs=not asked.eager,
        extra=_extra(model, asked),
    )
    need = estimate(model, work, division, costs_of("vllm", version))
    weights = _wide(asked, model, need.weights - work.extra) + work.extra
    return replace(
        need,
        weights=max(0, weights - asked.offloaded),
        cache=asked.cache_bytes or _cache_bytes(model, asked, shape, division),
        ram=need.ram + min(asked.offloaded, weights) * division.gpus + asked.host_cache,
    )


def _cache(asked: Asked, shape: Shape) -> Cache:
    # vLLM lays windows out in pages of the same pool; where it cannot, they take what other layers do.
    kind = asked.cache_type
    return Cache(
        context=shape.tokens,
        sequences=asked.sequences,
        key_type=kind,
        value_type=kind,
        shared=True,
        full_windows=True,
    )


def _cache_bytes(model: ModelFacts, asked: Asked, shape: Shape, division: Division) -> int:
    """Return the bytes of the pool, with a little room for its pages; states are kept of as many requests as fill it."""
    sequences = min(asked.sequences, max(1, shape.tokens // _USUAL_REQUEST))
    size = cache_bytes(model, replace(_cache(asked, shape), sequences=sequences), division)
    return size + size // 32


def _extra(model: ModelFacts, asked: Asked) -> int:
    flags = asked.flags
    extras = [
        Extra(kind="adapter", path=each.partition("=")[2] or each) for each in flags.values("--lora-modules")
    ]
    draft = flags.document("--speculative-config").get("model") or flags.text("--spec-model")
    if isinstance(draft, str):
        extras.append(Extra(kind="draft", path=draft))
    return extra_bytes(model, extras)


def _wide(asked: Asked, model: ModelFacts, weights: int) -> int:
    """Return what weights take when they are computed with in twice the bits of their files."""
    wide = asked.flags.text("--dtype") in ("float32", "float")
    return weights * 2 if wide and model.quantization.upper() in _NARROW else weights


def claim_on(
    request: EstimateRequest, asked: Asked, division: Division, devices: Sequence[GpuDevice]
) -> ResourceClaim:
    """Return the claim of an instance that is divided like this."""
    shape = shape_of(request.model, asked, division, devices, request.version)
    need = need_of(request.model, asked, shape, division, devices, request.version)
    if asked.share is not None:
        # vLLM takes that much whatever it needs, unless its cache has a size.
        least = need.vram if asked.cache_bytes is None else 0
        whole = int(asked.share * min(each.memory_total for each in devices))
        need = replace(need, cache=need.cache + max(0, whole - need.vram) if least else need.cache)
    return need.claim()


def cache_space(model: ModelFacts, asked: Asked, version: str) -> int:
    """Return the GiB of the cache on the processor, which vLLM takes in whole ones."""
    shape = shape_of(model, asked, Division(), (), version)
    wanted = asked.cache_bytes or _cache_bytes(model, asked, shape, Division())
    return max(1, -(-wanted // _GIB))


def claim_on_cpu(request: EstimateRequest, asked: Asked) -> ResourceClaim:
    """Return the claim on RAM of an instance on the processor."""
    costs = costs_of("vllm", request.version)
    processes = 1 if asked.division is None else asked.division.gpus
    weights = _wide(asked, request.model, weight_bytes(request.model)) + _extra(request.model, asked)
    cache = cache_space(request.model, asked, request.version) * _GIB
    return ResourceClaim(ram=costs.host + processes * (costs.process + cache) + weights + asked.host_cache)


def divisions(model: ModelFacts, asked: Asked, devices: Sequence[GpuDevice], version: str) -> list[Division]:
    """Return the divisions over up to all of ``devices``: those with the longest context first, then the fewest GPUs."""
    return divisions_by_context(
        model,
        asked.division,
        len(devices),
        lambda division: shape_of(model, asked, division, devices, version).tokens,
    )
