"""What makes a model take less memory: a shorter context, a smaller cache, no captured graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpustack.plugin import EstimateRequest, Suggestion
from gpustack.plugin.memory import Division, even_divisions
from gpustack_backends.vllm.memory import claim_on, is_pooling, shape_of
from gpustack_backends.vllm.parameters import Asked

#: Shorter contexts are of no use to anybody.
_SHORTEST = 1024


def suggestions(request: EstimateRequest) -> list[list[Suggestion]]:
    """Return kinds of changes, each from the least to the greatest; only those that take less on the same GPUs."""
    asked = Asked.of(request.parameters, request.model, request.version)
    if not request.devices or asked.share is not None or asked.cache_bytes is not None:
        return []
    division = asked.division or even_divisions(request.model, len(request.devices))[-1]
    now = _size(request, asked, division)
    context = shape_of(request.model, asked, division, request.devices, request.version).tokens
    kinds = [
        [
            _with(asked, f"a context of {each} tokens", "--max-model-len", str(each))
            for each in _halves(context)
        ]
    ]
    if not is_pooling(request.model) and not asked.flags.has("--kv-cache-dtype"):
        kinds.append([_with(asked, "an 8-bit KV cache", "--kv-cache-dtype", "fp8")])
    less = [[each for each in kind if _less(request, each, division, now)] for kind in kinds]
    return [kind for kind in less if kind]


def _less(request: EstimateRequest, each: Suggestion, division: Division, now: int) -> bool:
    changed = replace(request, parameters=each.parameters)
    return _size(changed, Asked.of(each.parameters, request.model, request.version), division) < now


def _size(request: EstimateRequest, asked: Asked, division: Division) -> int:
    return claim_on(request, asked, division, request.devices).vram


def _halves(number: int) -> Iterator[int]:
    while number // 2 >= _SHORTEST:
        number //= 2
        yield number


def _with(asked: Asked, what: str, flag: str, value: str) -> Suggestion:
    return Suggestion(what=what, parameters=(*asked.flags.without(flag), f"{flag}={value}"))
