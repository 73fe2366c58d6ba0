"""One worker of a fleet: what it has and what is held there, in bytes, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpustack.kit.text import MIB
from gpustack.scheduling.scorers.candidate import MOST_GPU
from gpustack.scheduling.snapshot import Holding, Room, Worker


class Seat:
    """The truth about one worker; the columns mirror it in MiB."""

    __slots__ = (
        "_base",
        "_claimed",
        "_position",
        "_ram_base",
        "_ram_claimed",
        "altered",
        "free",
        "holdings",
        "ram",
        "rose",
        "rows",
        "slot",
        "whole",
        "worker",
    )

    def __init__(self, worker: Worker, holdings: Iterable[Holding] = ()) -> None:
        #: Its place in the columns; -1 while it has none.
        self.slot = -1
        #: When something became free here, and when filters may say something new of it.
        self.rose = self.altered = 0
        #: Free MiB by position of the GPU, and of RAM.
        self.free: list[int] = []
        self.ram = 0
        #: How whole the worker is, see :func:`gpustack.scheduling.scorers.candidate.whole`.
        self.whole = 0
        self.holdings: dict[int, Holding] = {}
        self.set_worker(worker, holdings)

    def set_worker(self, worker: Worker, holdings: Iterable[Holding]) -> None:
        """Take in a changed worker with what is held there."""
        self.worker = worker
        self._position = {gpu.index: position for position, gpu in enumerate(worker.gpus)}
        #: Sets of GPUs to choose several from, by position, and whether they are linked.
        self.rows = [
            (tuple(self._position[gpu.index] for gpu in gpus), linked) for gpus, linked in worker.rows()
        ]
        self._base = [gpu.total - gpu.others - worker.vram_reserved for gpu in worker.gpus]
        self._claimed = [0] * len(worker.gpus)
        self._ram_base = worker.ram_total - worker.ram_others - worker.ram_reserved
        self._ram_claimed = 0
        self.holdings = {}
        for each in holdings:
            self.holdings[each.instance_id] = each
            self._add(each, 1)
        self._count()

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what decides which rows it has in the columns."""
        return len(self.worker.gpus), tuple(self.rows)

    def put(self, holding: Holding) -> None:
        """Add what an instance holds here."""
        self.holdings[holding.instance_id] = holding
        self._change(holding, 1)

    def pop(self, instance_id: int) -> None:
        """Take off what an instance holds here."""
        self._change(self.holdings.pop(instance_id), -1)

    def _change(self, holding: Holding, sign: int) -> None:
        self._add(holding, sign)
        if self.worker.unified_memory:
            self._count()
            return
        ram = self._ram_base - self._ram_claimed
        self.ram = ram // MIB if ram > 0 else 0
        for index in holding.vram:
            position = self._position.get(index)
            if position is not None:
                left = self._base[position] - self._claimed[position]
                self.free[position] = left // MIB if left > 0 else 0
        self._weigh()

    def _add(self, holding: Holding, sign: int) -> None:
        self._ram_claimed += sign * holding.ram
        unified = self.worker.unified_memory
        for index, size in holding.vram.items():
            position = self._position.get(index)
            if position is not None:
                self._claimed[position] += sign * size
            if unified:
                self._ram_claimed += sign * size

    def _count(self) -> None:
        ram = self._ram_base - self._ram_claimed
        self.ram = ram // MIB if ram > 0 else 0
        free = [
            (base - claimed) // MIB if base > claimed else 0
            for base, claimed in zip(self._base, self._claimed, strict=True)
        ]
        if self.worker.unified_memory:
            free = [min(each, self.ram) for each in free]
        self.free = free
        self._weigh()

    def _weigh(self) -> None:
        free = self.free
        if free:
            counted = free if max(free) <= MOST_GPU else [min(each, MOST_GPU) for each in free]
            self.whole = sum(counted) // len(counted) + min(counted)

    def choose(self, count: int, need: int, *, linked: bool, fullest: bool) -> list[int]:
        """Return the indexes of the ``count`` GPUs to take, each with ``need`` MiB free: the fullest or the emptiest.

        They are linked if that can be, or if it must be. Empty when there are not enough.
        """
        free, sign = self.free, 1 if fullest else -1
        if count == 1 and max(free) <= MOST_GPU:
            enough_for_one = [each for each in free if each >= need]
            if not enough_for_one:
                return []
            taken = min(enough_for_one) if fullest else max(enough_for_one)
            return [self.worker.gpus[free.index(taken)].index]
        if count == len(free) and not linked:
            return sorted(self._position) if min(free) >= need else []
        best: tuple[bool, int] | None = None
        chosen: list[int] = []
        rows = self.rows if count > 1 else self.rows[-1:]
        for positions, joined in rows:
            if linked and not joined:
                continue
            enough = sorted((sign * min(free[p], MOST_GPU), p) for p in positions if free[p] >= need)
            if len(enough) < count:
                continue
            cost = not joined, sum(size for size, _ in enough[:count])
            if best is None or cost < best:
                best, chosen = cost, [p for _, p in enough[:count]]
        gpus = self.worker.gpus
        return sorted(gpus[p].index for p in chosen)

    def room(self) -> Room:
        """Return the worker with what is held there."""
        return Room.of(self.worker, in_order(self.holdings))


def in_order(holdings: Mapping[int, Holding]) -> tuple[Holding, ...]:
    """Return what instances hold, by instance: the same whatever came first."""
    return tuple(holdings[each] for each in sorted(holdings))
