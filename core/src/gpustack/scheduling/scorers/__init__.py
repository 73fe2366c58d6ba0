"""Which of several fitting workers is better. A scorer returns a cost: the smallest wins, ties by worker id."""

from collections.abc import Mapping

from gpustack.scheduling.scorers.binpack import best_fit, binpack
from gpustack.scheduling.scorers.candidate import Candidate, Scorer
from gpustack.scheduling.scorers.spread import spread
from gpustack.schemas.models import PlacementStrategy

SCORERS: Mapping[PlacementStrategy, Scorer] = {
    PlacementStrategy.SPREAD: spread,
    PlacementStrategy.BINPACK: binpack,
}

__all__ = ["SCORERS", "Candidate", "Scorer", "best_fit", "binpack", "spread"]
