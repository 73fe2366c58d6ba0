"""Spread: linked GPUs, then fewer of the same model, then fewer instances, then local files, then more free memory."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.scorers.candidate import Candidate

#: Where each part of the cost begins; the one before it never grows so large.
UNLINKED_SHIFT, SAME_SHIFT, COUNT_SHIFT, AWAY_SHIFT = 56, 47, 32, 31
#: Instances that count at most: of the same model, and of all.
MOST_SAME, MOST_COUNT = (1 << 9) - 1, (1 << 15) - 1


def spread(candidate: Candidate, request: Request) -> int:
    """Return the cost of ``candidate``."""
    holdings = candidate.room.holdings
    same = sum(each.model_id == request.model_id for each in holdings)
    return (
        (candidate.unlinked << UNLINKED_SHIFT)
        + (min(same, MOST_SAME) << SAME_SHIFT)
        + (min(len(holdings), MOST_COUNT) << COUNT_SHIFT)
        + ((not candidate.local) << AWAY_SHIFT)
        - candidate.left()
    )
