"""What a scorer looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpustack.scheduling.fit import Fit
from gpustack.scheduling.request import Request, Way
from gpustack.scheduling.snapshot import Room


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way that fits on one worker."""

    room: Room
    way: Way
    fit: Fit

    def millis_left(self) -> int:
        """Return the thousandths of the scarce memory that stay free: of the chosen GPUs, or of the RAM."""
        worker = self.room.worker
        if not self.fit.vram:
            left, total = self.room.ram_free - self.fit.ram, worker.ram_total
        else:
            chosen = [gpu for gpu in worker.gpus if gpu.index in self.fit.vram]
            left = sum(self.room.vram_free(gpu) - self.fit.vram[gpu.index] for gpu in chosen)
            total = sum(gpu.total for gpu in chosen)
        return 1000 * left // total if total else 0


#: Costs are tuples of integers, compared from the left, so that no rounding decides.
Scorer = Callable[[Candidate, Request], tuple[int, ...]]
