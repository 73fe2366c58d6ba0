"""Where limits are counted: rows of numbers, for one process or in a file that all gateway processes map.

Nothing locks. Concurrency has a column for each seat, and only its process writes it, so that sums are exact but for
requests that two processes let in within the same microsecond: at most one too many for each other process. Rates have
one number for all, the time at which the bucket is full again; a write lost to another process in the same microsecond
loses one request's cost. A process that was killed leaves its column behind; whoever takes the seat clears it.
Times are the machine's monotonic clock: use a file in memory, which ends with the machine.
"""

from __future__ import annotations

import math
import mmap
import os
from hashlib import blake2b
from pathlib import Path

_MAGIC = 0x4750_5553_4C49_0001
_HEADER = 4
#: Of a row: its key, and when the buckets for requests and for tokens are full again.
_KEY, REQUESTS, TOKENS, _SEATS = 0, 1, 2, 3
#: Rows looked at for one key.
_PROBES = 32


class Buckets:
    """The rows of one process, or its view of all processes'."""

    def __init__(self, memory: memoryview, *, seat: int, seats: int) -> None:
        self._bits = memory.cast("Q")
        #: All rows; what :meth:`run` changes is at the row plus ``seat``.
        self.numbers = memory.cast("d")
        self._width = _SEATS + seats
        self._rows = (len(self._bits) - _HEADER) // self._width
        self.seat = _SEATS + seat
        self._places: dict[object, tuple[int, int]] = {}
        #: Whether other processes count here too.
        self.shared = seats > 1

    @classmethod
    def alone(cls, rows: int = 16384) -> Buckets:
        """Return rows for a process that is alone."""
        return cls(memoryview(bytearray(8 * (_HEADER + rows * (_SEATS + 1)))), seat=0, seats=1)

    @classmethod
    def mapped(cls, path: Path, *, seat: int, seats: int, rows: int = 16384) -> Buckets:
        """Return the rows in ``path``, made (0600) if it is not there; the seat's own column begins at 0.

        Raises ValueError for a seat that there is not, or a file made with other numbers; OSError without room for it.
        """
        if not 0 <= seat < seats:
            raise ValueError(f"there is no seat {seat} among {seats}")
        size = 8 * (_HEADER + rows * (_SEATS + seats))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            present = os.fstat(fd).st_size
            if present not in (0, size):
                raise ValueError(f"{path} was made for other numbers of seats and rows")
            # Room is taken in advance: a mapped page without any would end the process when it is written.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)
            else:
                os.ftruncate(fd, size)
            buckets = cls(memoryview(mmap.mmap(fd, size)), seat=seat, seats=seats)
        finally:
            os.close(fd)
        buckets._begin(path, seats, rows)
        return buckets

    def _begin(self, path: Path, seats: int, rows: int) -> None:
        head = (_MAGIC, seats, rows)
        if self._bits[0] not in (0, _MAGIC) or (self._bits[0] and tuple(self._bits[:3]) != head):
            raise ValueError(f"{path} was made for other numbers of seats and rows")
        new = not self._bits[0]
        for at, value in enumerate(head):
            self._bits[at] = value
        if new:
            return  # all of it is 0, and memory that nobody needed is never touched
        for row in range(self._rows):
            self.numbers[_HEADER + row * self._width + self.seat] = 0.0

    def row(self, key: object, now: float = -math.inf) -> int:
        """Return the row of ``key``, -1 when all that it might have are taken.

        With ``now`` the key gives its row up when another one needs it and nothing is counted there: ask again each
        time. Without, the row stays with its key.
        """
        try:
            row, mark = self._places[key]
            if self._bits[row] == mark:
                return row
        except KeyError:
            mark = int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little") & ~1 or 2
            if now == -math.inf:
                mark |= 1
        # Another process may write its key to the same free row in the same moment: the last one has it.
        for probe in range(_PROBES):
            row = self._at(mark, probe)
            if self._bits[row] == 0:
                self._bits[row] = mark
            if self._bits[row] == mark:
                return self._placed(key, row, mark)
        for probe in range(_PROBES):
            row = self._at(mark, probe)
            if not self._bits[row] & 1 and self._idle(row, now):
                self._bits[row] = mark
                return self._placed(key, row, mark)
        return -1

    def _at(self, mark: int, probe: int) -> int:
        return _HEADER + ((mark >> 1) + probe) % self._rows * self._width

    def _placed(self, key: object, row: int, mark: int) -> int:
        if len(self._places) >= 2 * self._rows:
            self._places.clear()  # most are of keys that lost their row
        self._places[key] = row, mark
        return row

    def _idle(self, row: int, now: float) -> bool:
        numbers = self.numbers[row + 1 : row + self._width]
        return max(numbers[0], numbers[1]) <= now and not any(numbers[2:])

    def running(self, row: int) -> float:
        """Return what all processes have running."""
        if not self.shared:
            return self.numbers[row + self.seat]
        return sum(self.numbers[row + _SEATS : row + self._width].tolist())

    def run(self, row: int, change: int) -> None:
        """Note that this process has one more running, or one less."""
        self.numbers[row + self.seat] += change

    def wait(self, row: int, which: int, cost: float, most: float, now: float) -> float:
        """Return how many seconds until a bucket that holds ``most`` and fills in a minute has ``cost``; 0: it has.

        What costs more than the bucket holds needs a full one, and is owed afterwards.
        """
        behind = min(self.numbers[row + which] - now, 3600.0)
        wait = behind - 60.0 * (1.0 - min(cost, most) / most)
        return wait if wait > 1e-6 else 0.0

    def spend(self, row: int, which: int, cost: float, most: float, now: float) -> None:
        """Take ``cost`` out of a bucket; a negative one is given back."""
        full_at = min(self.numbers[row + which], now + 3600.0)
        self.numbers[row + which] = max(full_at, now) + cost * 60.0 / most
