"""The workers as the scheduler sees them, in bytes. Changing a snapshot gives a new one.

    allocatable = total - others' measured use - reserved - claims

Decisions are made in whole MiB: what is free is rounded down, what is needed is rounded up. So nothing is ever put
where it does not fit, and at most one MiB of a GPU stays unused.

Others' use is what the system or driver measures minus what our own instances take of it, see :func:`others_use`.
It belongs to the moment of the measurement: a claim given or released since then does not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from gpustack.kit.text import MIB, MOST_MEMORY

#: MiB that count at most, so that all sums stay small numbers. What needs more fits nowhere.
MOST_MIB = MOST_MEMORY // MIB - 1


def mib_free(size: int) -> int:
    """Return ``size`` bytes that are free in whole MiB, rounded down; :data:`MOST_MIB` at most."""
    return min(size // MIB, MOST_MIB)


def mib_needed(size: int) -> int:
    """Return ``size`` bytes that are needed in whole MiB, rounded up; more than is ever free when that is more than :data:`MOST_MIB`."""
    return min(-(-size // MIB), MOST_MIB + 1)


def others_use(measured: int, running_claims: int) -> int:
    """Return the bytes that others use of ``measured`` bytes used in all, page cache not counted.

    ``running_claims`` is what instances had claimed that were already running, so that their memory is part of
    the measurement. Their true use is not known; a claim is at least that, so the answer is never too large.
    An instance that still loads is not deducted: what it has taken so far is not known at all, and counting it
    twice until it runs refuses at worst, where the reverse would overfill the machine.
    """
    return max(0, measured - running_claims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator with its memory. ``others`` is what others than our instances use of it."""

    index: int
    uuid: str
    total: int
    others: int = 0
    name: str = ""
    #: GPUs of a worker with the same number here are joined by fast links, each with each; None is with no other.
    island: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a worker is and has, without what is claimed there."""

    id: int
    name: str
    cluster_id: int
    ready: bool
    #: Why it is not ready.
    state_message: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: What backends look at: workers of one kind get the same offers.
    kind: str = ""
    #: The network that the members of one instance talk over; all of them must be on the same one.
    fabric: str = ""
    #: Names of the backends installed there.
    backends: frozenset[str] = frozenset()
    ram_total: int = 0
    ram_others: int = 0
    ram_reserved: int = 0
    #: Kept free on each GPU.
    vram_reserved: int = 0
    gpus: tuple[Gpu, ...] = ()
    #: GPUs use the processor's memory, so what one takes the other lacks.
    unified_memory: bool = False

    def rows(self) -> Iterator[tuple[tuple[Gpu, ...], bool]]:
        """Yield the sets of GPUs that several are chosen from, and whether all of a set are linked.

        Islands come first, in the order of their first GPU; then all GPUs, unless they are one island.
        """
        islands: dict[int, list[Gpu]] = {}
        for gpu in self.gpus:
            if gpu.island is not None:
                islands.setdefault(gpu.island, []).append(gpu)
        for island in islands.values():
            if len(island) > 1:
                yield tuple(island), True
        if len(self.gpus) < 2 or all(len(island) < len(self.gpus) for island in islands.values()):
            yield self.gpus, len(self.gpus) < 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Memory that an instance holds on a worker; ``vram`` is by the index of the GPU."""

    instance_id: int
    model_id: int
    worker_id: int
    ram: int
    vram: Mapping[int, int] = field(default_factory=dict)
    #: Instances of lower priority may be asked to leave for one of higher.
    priority: int = 0
    #: How much it would be missed; of two plans with as many victims the one with the smaller sum is taken.
    harm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A worker with what is held there."""

    worker: Worker
    holdings: tuple[Holding, ...] = ()
    ram_claimed: int = 0
    vram_claimed: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, worker: Worker, holdings: Iterable[Holding] = ()) -> Room:
        """Return the room that ``holdings`` leave on ``worker``."""
        held = tuple(holdings)
        vram: dict[int, int] = {}
        for each in held:
            for index, size in each.vram.items():
                vram[index] = vram.get(index, 0) + size
        ram = sum(each.ram for each in held)
        if worker.unified_memory:
            ram += sum(vram.values())
        return cls(worker=worker, holdings=held, ram_claimed=ram, vram_claimed=vram)

    @property
    def ram_free(self) -> int:
        """Return the allocatable RAM, 0 when more is taken than there is."""
        worker = self.worker
        return max(0, worker.ram_total - worker.ram_others - worker.ram_reserved - self.ram_claimed)

    def vram_free(self, gpu: Gpu) -> int:
        """Return the allocatable memory of one GPU, 0 when more is taken than there is."""
        claimed = self.vram_claimed.get(gpu.index, 0)
        free = max(0, gpu.total - gpu.others - self.worker.vram_reserved - claimed)
        return min(free, self.ram_free) if self.worker.unified_memory else free


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All workers with their room, by worker id."""

    rooms: Mapping[int, Room]

    @classmethod
    def of(cls, workers: Iterable[Worker], holdings: Iterable[Holding] = ()) -> Snapshot:
        """Return the snapshot of ``workers``; holdings on unknown workers are left out."""
        held: dict[int, list[Holding]] = {}
        for each in holdings:
            held.setdefault(each.worker_id, []).append(each)
        rooms = {w.id: Room.of(w, held.get(w.id, ())) for w in sorted(workers, key=lambda w: w.id)}
        return cls(MappingProxyType(rooms))

    def hold(self, holding: Holding) -> Snapshot:
        """Return the snapshot in which ``holding`` is claimed too; unchanged when its worker is unknown."""
        room = self.rooms.get(holding.worker_id)
        if room is None:
            return self
        return self._with(Room.of(room.worker, (*room.holdings, holding)))

    def release(self, instance_id: int) -> Snapshot:
        """Return the snapshot in which the instance holds nothing."""
        snapshot = self
        for room in self.rooms.values():
            rest = tuple(each for each in room.holdings if each.instance_id != instance_id)
            if len(rest) != len(room.holdings):
                snapshot = snapshot._with(Room.of(room.worker, rest))
        return snapshot

    def with_worker(self, worker: Worker) -> Snapshot:
        """Return the snapshot with ``worker`` new or changed; what is held there stays."""
        room = self.rooms.get(worker.id)
        return self._with(Room.of(worker, room.holdings if room is not None else ()))

    def _with(self, room: Room) -> Snapshot:
        return replace(self, rooms=MappingProxyType({**self.rooms, room.worker.id: room}))
