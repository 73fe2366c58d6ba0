"""What a scorer looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.fit import Fit, per_gpu
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Room, mib_free, mib_needed

#: MiB of one GPU that count at most, so that costs stay small integers: more is as good.
MOST_GPU = (1 << 20) - 1
#: MiB of RAM that count at most.
MOST_RAM = (1 << 30) - 1
#: What files on the worker's own disk are worth, in MiB for each GPU.
LOCAL = 8192
#: The cost of GPUs that are not linked to each other: more than any memory.
UNLINKED = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One member as it fits on one worker."""

    room: Room
    claim: ResourceClaim
    fit: Fit
    local: bool = False

    @property
    def unlinked(self) -> bool:
        """Tell whether several GPUs are taken that are not linked."""
        return len(self.fit.vram) > 1 and not self.fit.linked

    def left(self) -> int:
        """Return the MiB of the scarce memory that stay free: of the chosen GPUs, or of the RAM."""
        if not self.fit.vram:
            return min(mib_free(self.room.ram_free), MOST_RAM) - mib_needed(self.claim.ram)
        frees = (counted(self.room, gpu.index) for gpu in self.room.worker.gpus if gpu.index in self.fit.vram)
        return sum(frees) - self.claim.gpus * mib_needed(per_gpu(self.claim))


def counted(room: Room, index: int) -> int:
    """Return the free MiB of a GPU as far as they count."""
    gpu = next(each for each in room.worker.gpus if each.index == index)
    return min(mib_free(room.vram_free(gpu)), MOST_GPU)


def whole(room: Room) -> int:
    """Return how whole a worker is, in MiB: the mean free memory of its GPUs plus the smallest."""
    frees = [counted(room, gpu.index) for gpu in room.worker.gpus]
    return sum(frees) // len(frees) + min(frees)


#: Costs are integers, so that no rounding decides; those of an instance's members are added.
Scorer = Callable[[Candidate, Request], int]
