"""Spread: fewer of the same model, then fewer instances, then more free memory."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.scorers.candidate import Candidate


def spread(candidate: Candidate, request: Request) -> tuple[int, ...]:
    """Return the cost of ``candidate``."""
    holdings = candidate.room.holdings
    same = sum(each.model_id == request.model_id for each in holdings)
    return same, len(holdings), -candidate.millis_left()
