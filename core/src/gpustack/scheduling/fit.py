"""From a claim to the memory and the GPUs that meet it on one worker, or to what is missing there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpustack.kit.text import MIB
from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.snapshot import Gpu, Room, Worker, mib_free, mib_needed
from gpustack.schemas.models import PlacementStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The claim as it is met: RAM, and memory by GPU index."""

    ram: int
    vram: Mapping[int, int] = field(default_factory=dict)
    #: The GPUs are joined by fast links.
    linked: bool = False
    #: How many pieces of the claim each GPU got, by index; empty when it is spread evenly.
    pieces: Mapping[int, int] = field(default_factory=dict)


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
    ram_free: int = 0
    ram_missing: int = 0
    #: GPUs that the claim needs and those that are there, or of the largest island when they must be linked.
    gpus_needed: int = 0
    gpus_present: int = 0
    #: Of the GPUs with too little memory the nearest misses, as many as are lacking.
    gpus_short: tuple[GpuShort, ...] = ()
    #: The GPUs must be linked.
    linked: bool = False
    #: Of an instance on several workers, the number of its members; the claim is that of the member that misses most.
    members: int = 1

    @property
    def missing(self) -> int:
        """Return the bytes that are missing in all; GPUs that do not exist are not counted."""
        return self.ram_missing + sum(each.missing for each in self.gpus_short)

    @property
    def distance(self) -> int:
        """Return the missing MiB, by which the nearest misses are found."""
        shorts = sum(mib_needed(each.needed) - mib_free(each.free) for each in self.gpus_short)
        ram = mib_needed(self.ram_needed) - mib_free(self.ram_free) if self.ram_missing else 0
        return shorts + ram


def per_gpu(claim: ResourceClaim) -> int:
    """Return the bytes that the claim takes on each of its GPUs."""
    return -(-claim.vram // claim.gpus) if claim.gpus else 0


def fits(
    room: Room,
    claim: ResourceClaim,
    strategy: PlacementStrategy,
    *,
    linked: bool = False,
    only: frozenset[int] | None = None,
) -> Iterator[Fit]:
    """Yield how ``claim`` is met in ``room``, once for each set of GPUs to choose from; nothing when it is not.

    Of the GPUs with enough memory the emptiest are taken for ``spread`` and the fullest for ``binpack``; equal
    ones by index. ``only`` names the GPUs that may be taken.
    """
    if _ram_missing(room, claim):
        return
    if not claim.gpus:
        yield Fit(ram=claim.ram)
        return
    if claim.pieces and not room.worker.unified_memory:
        if (met := _in_pieces(room, claim, only)) is not None:
            yield met
        return
    share = per_gpu(claim)
    for gpus, joined in _rows(room, claim.gpus, linked):
        free = {gpu.index: mib_free(room.vram_free(gpu)) for gpu in gpus}
        enough = [
            gpu
            for gpu in gpus
            if free[gpu.index] >= mib_needed(share) and (only is None or gpu.index in only)
        ]
        if len(enough) < claim.gpus:
            continue
        sign = -1 if strategy is PlacementStrategy.SPREAD else 1
        enough.sort(key=lambda gpu: (sign * free[gpu.index], gpu.index))
        chosen = sorted(gpu.index for gpu in enough[: claim.gpus])
        pieces = _evenly(claim, chosen) if claim.pieces else {}
        yield Fit(ram=claim.ram, vram=dict.fromkeys(chosen, share), linked=joined, pieces=pieces)


def deficit(
    room: Room, claim: ResourceClaim, *, linked: bool = False, only: frozenset[int] | None = None
) -> Deficit:
    """Return what ``claim``, which does not fit in ``room``, lacks there: of several sets of GPUs the nearest."""
    ram_needed, ram_missing = _ram_needed(room, claim), _ram_missing(room, claim)
    ram_free = room.ram_free
    frees = {gpu.index: room.vram_free(gpu) for gpu in room.worker.gpus}
    found: list[Deficit] = []
    for gpus, _ in _rows(room, claim.gpus, linked) if claim.gpus else [((), True)]:
        allowed = [gpu for gpu in gpus if only is None or gpu.index in only]
        found.append(
            Deficit(
                claim=claim,
                ram_needed=ram_needed,
                ram_free=ram_free,
                ram_missing=ram_missing,
                gpus_needed=claim.gpus,
                gpus_present=len(allowed),
                gpus_short=_short(frees, allowed, claim),
                linked=linked and claim.gpus > 1,
            )
        )
    if not found:  # links are asked for where there are none
        present = min(1, sum(only is None or gpu.index in only for gpu in room.worker.gpus))
        return Deficit(
            claim=claim,
            ram_needed=ram_needed,
            ram_free=ram_free,
            ram_missing=ram_missing,
            gpus_needed=claim.gpus,
            gpus_present=present,
            linked=True,
        )
    return min(found, key=lambda each: (max(0, each.gpus_needed - each.gpus_present), each.distance))


def possible(
    room: Room, claim: ResourceClaim, *, linked: bool = False, only: frozenset[int] | None = None
) -> bool:
    """Tell whether the worker could hold the claim when nothing else ran there."""
    worker = room.worker
    if mib_needed(_ram_needed(room, claim)) > mib_free(max(0, worker.ram_total - worker.ram_reserved)):
        return False
    if claim.pieces and not worker.unified_memory:
        return _in_pieces(Room(worker=_alone(worker)), claim, only) is not None
    share = mib_needed(per_gpu(claim))
    return not claim.gpus or any(
        sum(
            mib_free(max(0, gpu.total - worker.vram_reserved)) >= share
            for gpu in gpus
            if only is None or gpu.index in only
        )
        >= claim.gpus
        for gpus, _ in _rows(room, claim.gpus, linked)
    )


def _alone(worker: Worker) -> Worker:
    """Return the worker as if nobody used it."""
    return replace(worker, ram_others=0, gpus=tuple(replace(gpu, others=0) for gpu in worker.gpus))


def _in_pieces(room: Room, claim: ResourceClaim, only: frozenset[int] | None) -> Fit | None:
    """Return how the pieces are divided over the fewest GPUs that have room for them; None when none have."""
    gpus = [gpu for gpu in room.worker.gpus if only is None or gpu.index in only]
    free = {gpu.index: mib_free(room.vram_free(gpu)) * MIB - claim.each for gpu in gpus}
    for count in range(1, min(claim.gpus, len(gpus)) + 1):
        best: dict[int, int] = {}
        # The GPU with the last piece is that with the largest index, and gives more.
        for end in sorted(free):
            capacity = {end: (free[end] - claim.last) // claim.piece}
            before = sorted((index for index in free if index < end), key=lambda each: (-free[each], each))
            capacity |= {index: free[index] // claim.piece for index in before[: count - 1]}
            if len(capacity) < count or min(capacity.values()) < 1:
                continue
            if sum(capacity.values()) > sum(best.values()):
                best = capacity
        if sum(best.values()) >= claim.pieces:
            return _divided(claim, best)
    return None


def _divided(claim: ResourceClaim, capacity: Mapping[int, int]) -> Fit:
    """Divide the pieces by how many each GPU could take; each gets one at least."""
    total, left = sum(capacity.values()), claim.pieces
    got = {}
    for index in sorted(capacity):
        got[index] = max(1, claim.pieces * capacity[index] // total)
        left -= got[index]
    while left:
        step = 1 if left > 0 else -1
        # Of those that may change, the one with the most room left gets one more, the one with the most gives one back.
        at = max(got, key=lambda each: (capacity[each] - got[each] if step > 0 else got[each], -each))
        got[at] += step
        left -= step
    end = max(got)
    vram = {
        index: claim.each + count * claim.piece + (claim.last if index == end else 0)
        for index, count in got.items()
    }
    return Fit(ram=claim.ram, vram=vram, pieces=got)


def _evenly(claim: ResourceClaim, gpus: Sequence[int]) -> dict[int, int]:
    """Divide the pieces evenly: GPUs that share the processor's memory have as much room, each as the other."""
    some, more = divmod(claim.pieces, len(gpus))
    return {index: some + (number < more) for number, index in enumerate(gpus)}


def as_met(claim: ResourceClaim, met: Fit) -> ResourceClaim:
    """Return ``claim`` with the GPUs that it is met with, where these may be fewer than it asked for."""
    return replace(claim, vram=sum(met.vram.values()), gpus=len(met.vram)) if met.pieces else claim


def _rows(room: Room, count: int, linked: bool) -> Iterator[tuple[tuple[Gpu, ...], bool]]:
    if count == 1:
        yield room.worker.gpus, True
        return
    for gpus, joined in room.worker.rows():
        if joined or not linked:
            yield gpus, joined


def _ram_needed(room: Room, claim: ResourceClaim) -> int:
    if not room.worker.unified_memory:
        return claim.ram
    # Each part is rounded by itself, as in the columns of a fleet.
    return (mib_needed(claim.ram) + mib_needed(per_gpu(claim)) * claim.gpus) * MIB


def _ram_missing(room: Room, claim: ResourceClaim) -> int:
    needed = _ram_needed(room, claim)
    return 0 if mib_needed(needed) <= mib_free(room.ram_free) else max(1, needed - room.ram_free)


def _short(frees: Mapping[int, int], gpus: Sequence[Gpu], claim: ResourceClaim) -> tuple[GpuShort, ...]:
    share = per_gpu(claim)
    need = mib_needed(share)
    short = [gpu for gpu in gpus if mib_free(frees[gpu.index]) < need]
    short.sort(key=lambda gpu: (-mib_free(frees[gpu.index]), gpu.index))
    lacking = max(0, claim.gpus - (len(gpus) - len(short)))
    return tuple(GpuShort(gpu=gpu, needed=share, free=frees[gpu.index]) for gpu in short[:lacking])
