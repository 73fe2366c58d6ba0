"""How full a fleet is and how broken its free memory, kept up to date worker by worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpustack.scheduling.fit import per_gpu
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.simulation.described import Kind
from gpustack.scheduling.snapshot import Room


@dataclass(frozen=True, slots=True)
class _Of:
    """Of one worker: bytes of GPU memory there are, claimed, free, and free but of no use."""

    total: int
    claimed: int
    free: int
    wasted: float


class Meter:
    """Adds up over the fleet and over time.

    Free memory of a GPU is of no use to a kind of request that does not fit there: since the GPU has too little, or the
    worker too few GPUs with enough. The fragmentation is the share of free memory of no use, averaged over the kinds by how
    many requests there are of each; what other fleets call it is in "Beware of Fragmentation" (USENIX ATC 2023).
    """

    def __init__(self, fleet: Fleet, kinds: Sequence[tuple[Kind, float]]) -> None:
        self._fleet = fleet
        some = [(kind.claim.gpus, per_gpu(kind.claim), weight) for kind, weight in kinds if kind.claim.gpus]
        whole = sum(weight for *_, weight in some)
        self._kinds = [(gpus, share, weight / whole) for gpus, share, weight in some] if whole else []
        self._of: dict[int, _Of] = {}
        self._total = self._claimed = self._free = 0
        self._wasted = 0.0
        self._at = 0.0
        self._seconds = self._full = self._broken = 0.0
        self.touch(each.id for each in fleet.workers())

    def touch(self, worker_ids: Iterable[int]) -> None:
        """Look again at workers after a change there."""
        for worker_id in worker_ids:
            new, old = self._look(self._fleet.room(worker_id)), self._of.get(worker_id)
            if old is not None:
                self._add(old, -1)
            self._add(new, 1)
            self._of[worker_id] = new

    def pass_to(self, at: float) -> None:
        """Let time pass, to ``at`` seconds, with the fleet as it is."""
        seconds = at - self._at
        self._at = at
        self._seconds += seconds
        self._full += seconds * (self._claimed / self._total if self._total else 0.0)
        self._broken += seconds * (self._wasted / self._free if self._free else 0.0)

    @property
    def utilisation(self) -> float:
        """Return the share of the GPU memory of ready workers that was claimed, on average over time."""
        return self._full / self._seconds if self._seconds else 0.0

    @property
    def fragmentation(self) -> float:
        """Return the share of free GPU memory that was of no use, on average over time."""
        # Sums of many fractions may miss by the last digit.
        return min(1.0, max(0.0, self._broken / self._seconds)) if self._seconds else 0.0

    def _add(self, one: _Of, sign: int) -> None:
        self._total += sign * one.total
        self._claimed += sign * one.claimed
        self._free += sign * one.free
        self._wasted += sign * one.wasted

    def _look(self, room: Room) -> _Of:
        if not room.worker.ready:
            return _Of(0, 0, 0, 0.0)
        frees = [room.vram_free(gpu) for gpu in room.worker.gpus]
        free = sum(frees)
        wasted = 0.0
        for gpus, share, weight in self._kinds:
            enough = [each for each in frees if each >= share]
            wasted += weight * (free - sum(enough) if len(enough) >= gpus else free)
        total = sum(gpu.total for gpu in room.worker.gpus)
        return _Of(total, sum(room.vram_claimed.values()), free, wasted)
