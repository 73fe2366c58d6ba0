"""What makes a model take less memory: a shorter context, a smaller cache, fewer requests at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from gpustack.plugin.memory.llama.claims import Case
from gpustack.plugin.memory.llama.parameters import Parameters
from gpustack.plugin.memory.llama.shape import is_whole_input
from gpustack.plugin.values import EstimateRequest, ResourceClaim, Suggestion

#: Shorter contexts are of no use to anybody.
_SHORTEST = 1024
_CACHE = ("--cache-type-k", "--cache-type-v")
_SMALL = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def suggestions(case: Case) -> Sequence[Sequence[Suggestion]]:
    """Return kinds of changes, each from the least to the greatest; none for what keeps no cache."""
    parameters, shape = case.parameters, case.shape
    contexts = [*_halves(shape.context, _SHORTEST)]
    shorter = [
        _with(parameters, f"a context of {each} tokens", ("--ctx-size", str(each))) for each in contexts
    ]
    if is_whole_input(case.model):
        return [shorter]
    fewer = [
        _with(parameters, f"{each} request{'s' if each > 1 else ''} at a time", ("--parallel", str(each)))
        for each in _halves(shape.parallel, 1)
    ]
    if any(parameters.get(flag) in _SMALL for flag in _CACHE) or parameters.get("--flash-attn") == "off":
        return [shorter, fewer]
    eight = ("--cache-type-k", "q8_0", "--cache-type-v", "q8_0")
    smaller = [_with(parameters, "an 8-bit KV cache", eight)]
    for each in contexts:
        what = f"an 8-bit KV cache and a context of {each} tokens"
        smaller.append(_with(parameters, what, ("--ctx-size", str(each), *eight)))
    return [shorter, smaller, fewer]


def that_help(
    kinds: Sequence[Sequence[Suggestion]],
    request: EstimateRequest,
    estimate: Callable[[EstimateRequest], ResourceClaim],
) -> Sequence[Sequence[Suggestion]]:
    """Return those under which the model of ``request`` takes less: some keep no cache, or nothing is known of theirs."""

    def size(asked: EstimateRequest) -> int:
        claim = estimate(asked)
        return claim.ram + claim.vram

    before = size(request)
    less = [
        [each for each in kind if size(replace(request, parameters=each.parameters)) < before]
        for kind in kinds
    ]
    return [kind for kind in less if kind]


def _halves(number: int, least: int) -> Iterator[int]:
    while number // 2 >= least:
        number //= 2
        yield number


def _with(parameters: Parameters, what: str, items: tuple[str, ...]) -> Suggestion:
    pairs = [f"{flag}={value}" for flag, value in zip(items[::2], items[1::2], strict=True)]
    return Suggestion(what=what, parameters=(*parameters.without(*items[::2]), *pairs))
