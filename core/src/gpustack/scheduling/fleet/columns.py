"""The memory of all workers as columns of whole MiB, kept up to date row by row and only where it is asked for.

A *slot* is a worker, in the order of ids, so that the first of equal costs is the one with the smaller id. A *row* is
a set of GPUs of one worker that several may be chosen from: an island of linked ones, or all. Every array is padded
to the width of the widest worker with -1, which no request fits into.

Kernels avoid masks: ``x >> 31`` is all ones where ``x`` is negative, and a cost OR-ed with that is larger than any as
an unsigned number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpustack.scheduling.fleet.seat import Seat
from gpustack.scheduling.scorers.candidate import MOST_GPU, UNLINKED
from gpustack.scheduling.scorers.spread import AWAY_SHIFT, COUNT_SHIFT, MOST_COUNT, UNLINKED_SHIFT
from gpustack.scheduling.snapshot import MOST_MIB, mib_free

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Index = NDArray[np.intp]
Flags = NDArray[np.bool_]

#: Larger than every cost.
NOWHERE = np.int64(1) << 62


class Runs:
    """For binpack of some number of GPUs, by row: runs of GPUs next to each other in the order of their free memory."""

    __slots__ = ("cost", "dirty", "least")

    def __init__(self, shape: tuple[int, int], slots: Iterable[int]) -> None:
        #: The smallest free memory in each run, and what it costs to take it.
        self.least: I32 = np.full(shape, -1, np.int32)
        self.cost: I32 = np.zeros(shape, np.int32)
        self.dirty = set(slots)


class Tops:
    """For spread over some number of GPUs, by row: the emptiest ones."""

    __slots__ = ("cost", "dirty", "least")

    def __init__(self, rows: int, slots: Iterable[int]) -> None:
        #: The smallest free memory among them, and what it costs to take them.
        self.least: I32 = np.full(rows, -1, np.int32)
        self.cost: I64 = np.zeros(rows, np.int64)
        self.dirty = set(slots)


class Columns:
    """All slots. ``best_fit`` leaves out how whole workers are."""

    def __init__(self, seats: Sequence[Seat], *, best_fit: bool = False) -> None:
        self.seats = list(seats)
        self._best_fit = best_fit
        count = len(seats)
        self.width = max((len(seat.free) for seat in seats), default=0) or 1
        self.free: I32 = np.full((count + 1, self.width), -1, np.int32)
        self.price: I32 = np.zeros((count + 1, self.width), np.int32)
        self.ram: I32 = np.zeros(count, np.int32)
        self.whole: I32 = np.zeros(count, np.int32)
        self.count: I64 = np.zeros(count, np.int64)
        self.unified: I64 = np.zeros(count, np.int64)
        #: When something became free on a worker, and when filters may say something new of it; see ``Fleet.clock``.
        self.rose: I64 = np.zeros(count, np.int64)
        self.altered: I64 = np.zeros(count, np.int64)
        #: Numbers of the workers' fabrics.
        self.fabric: I32 = np.zeros(count, np.int32)
        self._fabrics: dict[str, int] = {}
        #: The RAM of an empty worker.
        self.ram_most: I32 = np.zeros(count, np.int32)
        rows = [(slot, *row) for slot, seat in enumerate(seats) for row in seat.rows]
        self.row_slot: Index = np.array([row[0] for row in rows], np.intp)
        self.row_linked: Flags = np.array([row[2] for row in rows], np.bool_)
        #: What it costs to take several GPUs of a row.
        self.row_unlinked: I32 = np.where(self.row_linked, 0, UNLINKED).astype(np.int32)
        starts = [0]
        for seat in seats:
            starts.append(starts[-1] + len(seat.rows))
        #: The rows of a slot are those from ``row_start[slot]`` to before ``row_start[slot + 1]``.
        self.row_start = starts
        self.last_row: Index = np.array(starts[1:], np.intp) - 1
        pad = count * self.width
        cells = [
            [slot * self.width + p for p in positions] + [pad] * (self.width - len(positions))
            for slot, positions, _ in rows
        ]
        self._cells: Index = np.array(cells, np.intp).reshape(len(rows), self.width)
        self.row_gpus: I32 = np.array([len(row[1]) for row in rows], np.int32)
        #: Free memory of each row's GPUs, the fullest first; and what they have when empty. The rows are the second
        #: axis here, so that the n-th emptiest of all rows lie next to each other.
        self.sorted: I32 = np.full((self.width, len(rows)), -1, np.int32)
        self.most: I32 = np.full((self.width, len(rows)), -1, np.int32)
        self._unsorted = set(range(count))
        self._runs: dict[int, Runs] = {}
        self._tops: dict[int, Tops] = {}
        for slot, seat in enumerate(seats):
            seat.slot = slot
            self.refresh(seat)
            self.resize(seat)
            self.rose[slot], self.altered[slot] = seat.rose, seat.altered

    def refresh(self, seat: Seat) -> None:
        """Take in what is free on a worker now."""
        slot, free = seat.slot, seat.free
        if free:
            size = len(free)
            row = self.free[slot, :size]
            price = self.price[slot, :size]
            if max(free) > MOST_GPU:
                row[:] = [min(each, MOST_MIB) for each in free]
                row = np.minimum(row, MOST_GPU)
            else:
                row[:] = free
            if self._best_fit:
                price[:] = row
            else:
                self.whole[slot] = seat.whole
                np.add(row, seat.whole, out=price)
        self.ram[slot] = min(seat.ram, MOST_MIB)
        self.count[slot] = min(len(seat.holdings), MOST_COUNT)
        self._unsorted.add(slot)
        for runs in self._runs.values():
            runs.dirty.add(slot)
        for tops in self._tops.values():
            tops.dirty.add(slot)

    def resize(self, seat: Seat) -> None:
        """Take in what a worker has."""
        worker, slot = seat.worker, seat.slot
        self.unified[slot] = worker.unified_memory
        self.fabric[slot] = self._fabrics.setdefault(worker.fabric, len(self._fabrics))
        self.ram_most[slot] = mib_free(max(0, worker.ram_total - worker.ram_reserved))
        most = [mib_free(max(0, gpu.total - worker.vram_reserved)) for gpu in worker.gpus]
        for number, (positions, _) in enumerate(seat.rows, self.row_start[slot]):
            if positions:
                self.most[-len(positions) :, number] = sorted(most[p] for p in positions)

    def _rows(self, slots: set[int]) -> Index:
        if len(slots) == len(self.seats):
            return np.arange(len(self.row_slot))
        start = self.row_start
        return np.array([row for slot in slots for row in range(start[slot], start[slot + 1])], np.intp)

    def by_size(self) -> I32:
        """Return ``sorted``, up to date."""
        if self._unsorted:
            rows = self._rows(self._unsorted)
            found = self.free.ravel().take(self._cells[rows])
            found.sort(axis=1)
            self.sorted[:, rows] = found.T
            self._unsorted.clear()
        return self.sorted

    def runs(self, count: int) -> Runs:
        """Return the runs of ``count`` GPUs, up to date; ``count`` is at most the width."""
        found = self._runs.get(count)
        if found is None:
            shape = len(self.row_slot), self.width - count + 1
            found = self._runs[count] = Runs(shape, range(len(self.seats)))
        if found.dirty:
            rows = self._rows(found.dirty)
            found.dirty.clear()
            free = self.by_size().take(rows, axis=1).T.copy()
            found.least[rows] = free[:, : self.width - count + 1]
            sums = np.minimum(free, MOST_GPU).cumsum(axis=1, dtype=np.int32)
            taken = sums[:, count - 1 :].copy()
            taken[:, 1:] -= sums[:, :-count]
            extra = self.whole.take(self.row_slot.take(rows))
            extra *= count
            extra += self.row_unlinked.take(rows)
            taken += extra[:, None]
            found.cost[rows] = taken
        return found

    def tops(self, count: int) -> Tops:
        """Return the ``count`` emptiest GPUs, up to date; ``count`` is at most the width."""
        found = self._tops.get(count)
        if found is None:
            found = self._tops[count] = Tops(len(self.row_slot), range(len(self.seats)))
        if found.dirty:
            rows = self._rows(found.dirty)
            found.dirty.clear()
            free = self.by_size()[self.width - count :].take(rows, axis=1)
            found.least[rows] = free[0]
            cost = self.count.take(self.row_slot.take(rows)) << COUNT_SHIFT
            cost += 1 << AWAY_SHIFT
            cost -= np.minimum(free, MOST_GPU).sum(axis=0)
            if count > 1:
                cost += (self.row_unlinked.take(rows) > 0).astype(np.int64) << UNLINKED_SHIFT
            found.cost[rows] = cost
        return found
