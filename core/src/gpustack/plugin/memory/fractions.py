"""The share of a GPU that an engine is told to take: a result of what it needs, not a guess that it is to fit.

vLLM takes ``--gpu-memory-utilization`` of the whole GPU and gives what is left of it, after weights and activations,
to its cache. SGLang takes ``--mem-fraction-static`` of what is free when it starts, for weights and cache alone. With
the usual 0.9 nothing else has room on a card; with these, small models share one.
"""

from __future__ import annotations

import math

from gpustack.kit.text import human_bytes
from gpustack.plugin.errors import Refused

#: Steps of a fraction: fine enough that rounding up costs 80 kB of 80 GB, and short enough for a command line.
_STEPS = 1_000_000


def memory_fraction(claim: int, total: int) -> float:
    """Return the least fraction of ``total`` bytes that is ``claim`` bytes or more; for vLLM.

    Raises Refused when the GPU is smaller than the claim.
    """
    if claim > total:
        raise Refused(f"{human_bytes(claim)} do not fit a GPU of {human_bytes(total)}")
    return _least(claim, total)


def static_fraction(static: int, claim: int, total: int, *, free: int | None = None) -> float:
    """Return the fraction of the free memory that weights and cache (``static`` bytes) take; for SGLang.

    ``claim`` is all that the instance takes on the GPU, ``free`` what is free there when the engine starts (the whole
    of it when nothing is said). Raises Refused when the claim does not fit into that.
    """
    there = total if free is None else min(free, total)
    if claim > there:
        raise Refused(f"{human_bytes(claim)} do not fit into the {human_bytes(there)} that are free")
    if static > claim:
        raise Refused(f"weights and cache of {human_bytes(static)} exceed the claim of {human_bytes(claim)}")
    return _least(static, there)


def _least(part: int, whole: int) -> float:
    return math.ceil(part * _STEPS / whole) / _STEPS
