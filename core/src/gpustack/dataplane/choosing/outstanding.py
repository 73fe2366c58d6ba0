"""How much each instance has to do: tokens in flight, and the number of requests, in one number.

The number is ``tokens << 20 | requests``, so that comparing two compares tokens first and requests among equals, and
adding adds both. :class:`Outstanding` counts for a process that is alone. :class:`SharedOutstanding` adds what the
other processes have on the same instances, through a file that all map.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from gpustack.dataplane.choosing.holders import CELLS, Holders

log = logging.getLogger(__name__)

TOKEN = 1 << 20
REQUESTS = TOKEN - 1


class Tally:
    """What one instance has to do, as far as this process knows. ``total`` is read in each choice."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> None:
        """Add what one request brings; negative when it is over."""
        self.total += amount

    @property
    def own(self) -> int:
        """What this process itself has there."""
        return self.total


class Outstanding:
    """Counts for one process alone."""

    #: Whether :meth:`refresh` tells anything.
    shared = False

    def __init__(self) -> None:
        self.holders = Holders()

    def tally(self, instance_id: int) -> Tally:
        """Return a count that starts at 0."""
        return Tally()

    def release(self, instance_id: int, tally: Tally) -> None:
        """Forget an instance that is gone and has nothing to do."""

    def refresh(self, tallies: Iterable[Tally], now: float) -> bool:
        """Bring the totals up to date with the other processes; tell whether any of them counts there, too.

        ``now`` is seconds of any clock that never goes back.
        """
        return False


class _SharedTally(Tally):
    __slots__ = ("_cells", "_mine", "_own", "elsewhere", "instance_id", "version")

    def __init__(self, instance_id: int, cells: memoryview, mine: int) -> None:
        super().__init__()
        self._own = 0
        self._cells = cells
        self._mine = mine
        self.instance_id = instance_id
        #: Where the other processes count for the same instance, as of ``version``.
        self.elsewhere: tuple[int, ...] = ()
        self.version = -1

    def add(self, amount: int) -> None:
        self.total += amount
        self._own += amount
        self._cells[self._mine] = self._own

    @property
    def own(self) -> int:
        return self._own

    def read(self) -> None:
        cells = self._cells
        total = self._own
        for index in self.elsewhere:
            total += cells[index]
        self.total = total


_MAGIC = 0x4750_5553_5441_0001
_HEADER = 8
#: Before a seat's rows: how often its rows were given out anew, and how many were ever used.
_SEAT_HEADER = 2
_ROW = 2
#: Seconds after which a process looks for instances that others began to count.
NEWS_AFTER = 0.1


class SharedOutstanding(Outstanding):
    """Counts of several processes over one mapped file. Each writes only the part of its own seat, so none locks.

    A process that was killed leaves its counts behind; whoever takes the same seat, or calls :meth:`clear` for it,
    zeroes them. Two living processes must never have one seat: one that drains keeps its own until it ends.
    The values are of this machine and this boot: use a new file (or a memory file) whenever all processes are new.
    """

    shared = True

    def __init__(self, path: Path, *, seat: int, seats: int, rows: int = 16384) -> None:
        """Map ``path``, made if it is not there. ``rows`` is the most instances that one seat can count.

        Raises ValueError for a seat that there is not, or a file made with other numbers.
        """
        if not 0 <= seat < seats:
            raise ValueError(f"there is no seat {seat} among {seats}")
        self._seat, self._seats, self._rows = seat, seats, rows
        self._map = _mapped(path, 8 * (_HEADER + CELLS + seats * self._seat_size()))
        self._cells = memoryview(self._map).cast("Q")
        self._check(path)
        super().__init__()
        self.holders = Holders(self._cells[_HEADER : _HEADER + CELLS])
        self._free: list[int] = []
        self._index: dict[int, dict[int, int]] = {}
        self._generations = [-1] * seats
        self._version = 0
        self._news_at = 0.0
        self.clear(seat)

    def tally(self, instance_id: int) -> Tally:
        """Return this process's count of an instance, at 0. Without a free row it is not shared."""
        base = self._base(self._seat)
        if self._free:
            row = self._free.pop()
        elif self._cells[base + 1] < self._rows:
            row = self._cells[base + 1]
            self._cells[base + 1] = row + 1
        else:
            log.warning("instance %d: more than %d instances, it is counted apart", instance_id, self._rows)
            return Tally()
        cell = base + _SEAT_HEADER + _ROW * row
        # First the count, then whose it is, then the news that there is one: readers take no lock.
        self._cells[cell + 1] = 0
        self._cells[cell] = instance_id
        self._cells[base] += 1
        return _SharedTally(instance_id, self._cells, cell + 1)

    def release(self, instance_id: int, tally: Tally) -> None:
        """Give the row back."""
        if isinstance(tally, _SharedTally):
            base = self._base(self._seat)
            cell = tally._mine - 1
            self._cells[cell] = 0
            self._cells[cell + 1] = 0
            self._cells[base] += 1
            self._free.append((cell - base - _SEAT_HEADER) // _ROW)

    def refresh(self, tallies: Iterable[Tally], now: float) -> bool:
        """Add up what all processes have; about a tenth of a microsecond for each instance and process."""
        if now >= self._news_at:
            self._news_at = now + NEWS_AFTER
            self._look_for_news()
        version = self._version
        others = False
        for tally in tallies:
            if type(tally) is _SharedTally:
                if tally.version != version:
                    tally.elsewhere = self._elsewhere(tally.instance_id)
                    tally.version = version
                    tally.read()
                elif tally.elsewhere:
                    tally.read()
                if tally.elsewhere:
                    others = True
        return others

    def clear(self, seat: int) -> None:
        """Forget all that ``seat`` counted: its process is dead. The own seat only while nothing is counted yet."""
        base = self._base(seat)
        used = self._cells[base + 1]
        self._cells[base + 1] = 0
        for cell in range(base + _SEAT_HEADER, base + _SEAT_HEADER + _ROW * min(used, self._rows)):
            self._cells[cell] = 0
        self._cells[base] += 1

    def close(self) -> None:
        """Unmap. No tally of it may be used afterwards."""
        self.clear(self._seat)
        self.holders = Holders()
        self._cells.release()

    def _seat_size(self) -> int:
        return _SEAT_HEADER + _ROW * self._rows

    def _base(self, seat: int) -> int:
        return _HEADER + CELLS + seat * self._seat_size()

    def _check(self, path: Path) -> None:
        made = (_MAGIC, self._seats, self._rows)
        found = tuple(self._cells[:3])
        if found == (0, 0, 0):
            self._cells[2], self._cells[1], self._cells[0] = made[2], made[1], made[0]
        elif found != made:
            raise ValueError(f"{path} was made for {found[1]} seats of {found[2]} rows; remove it")

    def _look_for_news(self) -> None:
        for seat in range(self._seats):
            if seat == self._seat:
                continue
            base = self._base(seat)
            generation = self._cells[base]
            if generation != self._generations[seat]:
                self._generations[seat] = generation
                self._index[seat] = self._rows_of(base)
                self._version += 1

    def _rows_of(self, base: int) -> dict[int, int]:
        first = base + _SEAT_HEADER
        used = min(self._cells[base + 1], self._rows)
        ids = self._cells[first : first + _ROW * used].tolist()[::_ROW]
        return {instance: first + _ROW * row + 1 for row, instance in enumerate(ids) if instance}

    def _elsewhere(self, instance_id: int) -> tuple[int, ...]:
        cells = (index.get(instance_id) for index in self._index.values())
        return tuple(cell for cell in cells if cell is not None)


def _mapped(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        there = os.fstat(descriptor).st_size
        if there not in {0, size}:
            raise ValueError(f"{path} has {there} bytes instead of {size}; remove it")
        os.truncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
