"""From a claim to the memory and the GPUs that meet it on one worker, or to what is missing there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.snapshot import Gpu, Room
from gpustack.schemas.models import PlacementStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The claim as it is met: RAM, and memory by GPU index."""

    ram: int
    vram: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShort:
    """One GPU that lacks ``missing`` of ``needed`` bytes."""

    gpu: Gpu
    needed: int
    free: int

    @property
    def missing(self) -> int:
        """Return the bytes that are missing."""
        return self.needed - self.free


@dataclass(frozen=True, slots=True, kw_only=True)
class Deficit:
    """Why a claim does not fit on a worker. Zero and empty parts are met."""

    claim: ResourceClaim
    ram_needed: int = 0
    ram_missing: int = 0
    #: GPUs that the claim needs and those that are there.
    gpus_needed: int = 0
    gpus_present: int = 0
    #: Of the GPUs with too little memory the nearest misses, as many as are lacking.
    gpus_short: tuple[GpuShort, ...] = ()

    @property
    def missing(self) -> int:
        """Return the bytes that are missing in all; GPUs that do not exist are not counted."""
        return self.ram_missing + sum(each.missing for each in self.gpus_short)


def per_gpu(claim: ResourceClaim) -> int:
    """Return the bytes that the claim takes on each of its GPUs."""
    return -(-claim.vram // claim.gpus) if claim.gpus else 0


def fit(room: Room, claim: ResourceClaim, strategy: PlacementStrategy) -> Fit | Deficit:
    """Return how ``claim`` is met in ``room``, or the deficit.

    Of the GPUs with enough memory the emptiest are taken for ``spread`` and the fullest for ``binpack``; equal
    ones by index.
    """
    share = per_gpu(claim)
    chosen, short = _choose(room, claim.gpus, share, strategy)
    ram_needed = claim.ram + (share * claim.gpus if room.worker.unified_memory else 0)
    ram_missing = max(0, ram_needed - room.ram_free)
    if ram_missing or len(chosen) < claim.gpus:
        return Deficit(
            claim=claim,
            ram_needed=ram_needed,
            ram_missing=ram_missing,
            gpus_needed=claim.gpus,
            gpus_present=len(room.worker.gpus),
            gpus_short=short,
        )
    return Fit(ram=claim.ram, vram={gpu.index: share for gpu in chosen})


def _choose(
    room: Room, count: int, share: int, strategy: PlacementStrategy
) -> tuple[list[Gpu], tuple[GpuShort, ...]]:
    if count == 0:
        return [], ()
    free = {gpu.index: room.vram_free(gpu) for gpu in room.worker.gpus}
    enough = [gpu for gpu in room.worker.gpus if free[gpu.index] >= share]
    short = [
        GpuShort(gpu=gpu, needed=share, free=free[gpu.index])
        for gpu in room.worker.gpus
        if free[gpu.index] < share
    ]
    short.sort(key=lambda each: (each.missing, each.gpu.index))
    lacking = tuple(short[: max(0, count - len(enough))])
    sign = -1 if strategy is PlacementStrategy.SPREAD else 1
    enough.sort(key=lambda gpu: (sign * free[gpu.index], gpu.index))
    return sorted(enough[:count], key=lambda gpu: gpu.index), lacking
