"""Binpack: the least memory left over, so that whole workers and GPUs stay free for large models."""

from __future__ import annotations

from gpustack.scheduling.request import Request
from gpustack.scheduling.scorers.candidate import Candidate


def binpack(candidate: Candidate, request: Request) -> tuple[int, ...]:
    """Return the cost of ``candidate``."""
    return (candidate.millis_left(),)
