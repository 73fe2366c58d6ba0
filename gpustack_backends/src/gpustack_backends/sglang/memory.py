"""How much memory SGLang takes, and the context that fits: the same at every call for the same GPUs."""

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
)
from gpustack_backends.sglang.parameters import Asked

#: Longest contexts, in tokens, when the user asks for none; the first that fits is taken. As many tokens are kept of
#: shorter requests together.
_CONTEXTS = (32768, 16384, 8192, 4096, 2048)
#: Tokens of a request that is neither short nor long.
_USUAL_REQUEST = 2048
#: A card is never filled to the brim: its driver and the display take some.
_USABLE = 0.92


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that an instance runs with, in tokens."""

    #: Of one request.
    context: int
    #: Of all that are kept.
    tokens: int


def shape_of(
    model: ModelFacts, asked: Asked, division: Division, devices: Sequence[GpuDevice], version: str
) -> Shape:
    """Return the longest context that fits the smallest of ``devices``; the shortest when none does."""
    room = min(each.memory_total for each in devices) * _USABLE
    shape = Shape(0, 0)
    for shape in _shapes(model, asked):
        if need_of(model, asked, shape, division, devices, version).vram <= room:
            break
    return shape


def _shapes(model: ModelFacts, asked: Asked) -> Iterator[Shape]:
    for limit in _CONTEXTS:
        context = asked.context or min(model.context_length or limit, limit)
        yield Shape(context, asked.tokens or max(limit, context))


def need_of(
    model: ModelFacts,
    asked: Asked,
    shape: Shape,
    division: Division,
    devices: Sequence[GpuDevice],
    version: str,
) -> Need:
    """Return what one GPU of the instance takes. Raises Refused for a division that the model does not allow."""
    cache = Cache(
        context=shape.tokens,
        sequences=asked.sequences,
        key_type=asked.cache_type,
        value_type=asked.cache_type,
        shared=True,
        full_windows=True,
    )
    step = asked.step(min(each.memory_total for each in devices))
    work = Workload(cache=cache, step=step, graphs=asked.graphs, extra=_extra(model, asked))
    need = estimate(model, work, division, costs_of("sglang", version))
    # States are kept of as many requests as fill the pool.
    states = min(asked.sequences, max(1, shape.tokens // _USUAL_REQUEST))
    kept = cache_bytes(model, replace(cache, sequences=states), division)
    return replace(need, cache=kept, ram=need.ram + asked.hierarchy(kept) * division.gpus)


def _extra(model: ModelFacts, asked: Asked) -> int:
    extras = [
        Extra(kind="adapter", path=each.partition("=")[2] or each)
        for each in asked.flags.values("--lora-paths")
    ]
    if draft := asked.flags.text("--speculative-draft-model-path"):
        extras.append(Extra(kind="draft", path=draft))
    return extra_bytes(model, extras)


def claim_on(
    request: EstimateRequest, asked: Asked, division: Division, devices: Sequence[GpuDevice]
) -> ResourceClaim:
    """Return the claim of an instance that is divided like this."""
    shape = shape_of(request.model, asked, division, devices, request.version)
    need = need_of(request.model, asked, shape, division, devices, request.version)
    if asked.static is not None and asked.tokens is None:
        # SGLang takes that much for weights and cache, whatever they need.
        static = int(asked.static * min(each.memory_total for each in devices))
        need = replace(need, cache=max(need.cache, static - need.weights))
    return need.claim()


def static_part(need: Need) -> float:
    """Return ``--mem-fraction-static``: the part of what is free at the start that is for weights and cache.

    No less is free than the claim; where more is, ``--max-total-tokens`` keeps the cache from taking it.
    """
    return need.static_fraction_of(need.vram)


def divisions(model: ModelFacts, asked: Asked, devices: Sequence[GpuDevice], version: str) -> list[Division]:
    """Return the divisions over up to all of ``devices``: those with the longest context first, then the fewest GPUs."""
    return divisions_by_context(
        model,
        asked.division,
        len(devices),
        lambda division: shape_of(model, asked, division, devices, version).tokens,
    )
