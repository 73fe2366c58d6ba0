"""Binpack: break as little as possible of what only large models can use.

A GPU costs the memory that it would have left, as with best fit, plus how whole its worker is: the mean free memory
of the worker's GPUs and the smallest. So small models gather on workers that are broken already, and requests for
many GPUs at once find whole ones. This is the gradient of fragmentation (Weng et al., USENIX ATC 2023: the share of
free memory that the known mix of requests cannot use) in a form that does not depend on the request, which makes it
one column that is kept up to date. Best fit alone refuses about twice as many requests for eight GPUs at 90 % use;
``benchmarks/scheduling.py`` measures it.
"""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.scorers.candidate import LOCAL, UNLINKED, Candidate, whole


def binpack(candidate: Candidate, request: Request) -> int:
    """Return the cost of ``candidate`` in MiB."""
    gpus = len(candidate.fit.vram)
    cost = best_fit(candidate, request)
    return cost + gpus * whole(candidate.room) if gpus else cost


def best_fit(candidate: Candidate, request: Request) -> int:
    """Return the MiB left over, which is all that plain best fit looks at."""
    del request
    cost = candidate.left() - (LOCAL * max(1, len(candidate.fit.vram)) if candidate.local else 0)
    return cost + (UNLINKED if candidate.unlinked else 0)
