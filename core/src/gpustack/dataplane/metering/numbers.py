"""Numbers for Prometheus, kept where neither a process's end nor its restart loses them, and summed over processes.

Each gateway process has a slot, an integer that its successor gets again. A slot is two files in one folder: an index, a
line for each series, and an array of doubles that the process maps into its memory. To count is to add to that array;
whoever renders (:mod:`~gpustack.dataplane.metering.exposition`) reads all slots' files and asks no process. The folder
should lie in memory, such as below ``/run``: then counters begin anew with the machine, which Prometheus expects.

One kind of number must not outlive its process: a gauge. Those of slots that nobody holds are left out.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from gpustack.kit.errors import GPUStackError
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir

log = logging.getLogger(__name__)

Kind = Literal["counter", "gauge", "histogram"]

#: Doubles that one slot has room for: a megabyte.
ROOM = 1 << 17
#: Of so many series of one name, the next have ``other`` as labels: names come from tables, but tables change.
MOST_SERIES = 2000
_OTHER = "other"

#: Upper bounds in seconds; one more bucket is without bound.
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)


class Counter:
    """One series that grows, or, as a gauge, goes up and down."""

    __slots__ = ("at", "values")

    def __init__(self, values: memoryview[float], at: int) -> None:
        self.values = values
        self.at = at

    def add(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self.values[self.at] += amount

    def set(self, value: float) -> None:
        """Make it ``value``; for gauges."""
        self.values[self.at] = value

    @property
    def value(self) -> float:
        """What this slot has counted."""
        value: float = self.values[self.at]
        return value


class Histogram:
    """One series of observations, each counted in one bucket."""

    __slots__ = ("_sum", "at", "bounds", "values")

    def __init__(self, values: memoryview[float], at: int, bounds: tuple[float, ...]) -> None:
        self.values = values
        self.at = at
        self.bounds = bounds
        self._sum = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count ``value``."""
        values = self.values
        values[self.at + bisect_left(self.bounds, value)] += 1
        values[self._sum] += value


class Counters:
    """The series of one name. ``of`` is a look-up; keep what it returns where that is easy."""

    def __init__(self, slot: Slot, kind: Kind, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._slot = slot
        self._made: dict[tuple[object, ...], Counter] = {}
        self._head = (kind, name, text, labels)

    def of(self, *values: object) -> Counter:
        """Return the series with these labels' values."""
        try:
            return self._made[values]
        except KeyError:
            if len(self._made) >= MOST_SERIES:
                values = (_OTHER,) * len(values)
            at = self._slot.place(*self._head, values, ())
            made = self._made[values] = Counter(self._slot.values, at)
            return made


class Histograms:
    """The same for histograms."""

    def __init__(
        self, slot: Slot, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]
    ) -> None:
        self._slot = slot
        self._made: dict[tuple[object, ...], Histogram] = {}
        self._head = ("histogram", name, text, labels)
        self._bounds = bounds

    def of(self, *values: object) -> Histogram:
        """Return the series with these labels' values."""
        try:
            return self._made[values]
        except KeyError:
            if len(self._made) >= MOST_SERIES:
                values = (_OTHER,) * len(values)
            at = self._slot.place("histogram", *self._head[1:], values, self._bounds)
            made = self._made[values] = Histogram(self._slot.values, at, self._bounds)
            return made


class Slot:
    """A process's own numbers, those of the process that had the slot before it included."""

    def __init__(self, folder: Path, number: int, *, room: int = ROOM) -> None:
        self._folder = folder
        self._number = number
        self._room = room
        self._lock = FileLock(folder / f"{number}.lock")
        self._places: dict[str, int] = {}
        self._next = 0
        self._full = False

    def __enter__(self) -> Self:
        """Take the slot up. Raises GPUStackError when another process has it, or there is no room in the folder."""
        make_dir(self._folder, what="the folder for metrics", mode=0o700)
        if not self._acquire():
            raise GPUStackError(f"{self._folder}: another process counts in slot {self._number}")
        try:
            self._map()
            self._load()
        except OSError as error:
            self._lock.release()
            raise GPUStackError(f"{self._folder}: no room for metrics: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the slot go; what was counted stays. Series must not be used any more."""
        self.values.release()
        self._doubles.release()
        self._memory.close()
        os.close(self._index)
        self._lock.release()

    @property
    def free(self) -> bool:
        """Whether no process counts in it now; another one may be faster all the same."""
        make_dir(self._folder, what="the folder for metrics", mode=0o700)
        if not self._acquire():
            return False
        self._lock.release()
        return True

    def counters(self, name: str, text: str, *labels: str) -> Counters:
        """Return counters called ``name``; by custom it ends in ``_total``."""
        return Counters(self, "counter", name, text, labels)

    def gauges(self, name: str, text: str, *labels: str) -> Counters:
        """Return gauges called ``name``: what is now, summed over the processes that live."""
        return Counters(self, "gauge", name, text, labels)

    def histograms(self, name: str, text: str, *labels: str, bounds: Sequence[float] = LATENCY) -> Histograms:
        """Return histograms called ``name`` with these upper bounds."""
        return Histograms(self, name, text, labels, tuple(bounds))

    def place(
        self,
        kind: Kind | str,
        name: str,
        text: str,
        labels: tuple[str, ...],
        values: tuple[object, ...],
        bounds: tuple[float, ...],
    ) -> int:
        """Return where the numbers of one series begin, which get a place when they are new."""
        width = len(bounds) + 2 if kind == "histogram" else 1
        line = json.dumps([kind, name, text, list(labels), [str(value) for value in values], list(bounds)])
        if (at := self._places.get(line)) is not None:
            return at
        if self._next + width > self._room - 64:
            if not self._full:
                log.error("%s: there is no room for more series of metrics", self._folder)
            self._full = True
            return self._room - 64  # nobody reads there
        at, self._next = self._next, self._next + width
        os.write(self._index, f"{at} {line}\n".encode())
        self._places[line] = at
        return at

    def _acquire(self) -> bool:
        # Whoever renders holds the lock for a moment, to see whether anybody else does.
        for _ in range(20):
            if self._lock.acquire():
                return True
            time.sleep(0.01)
        return False

    def _map(self) -> None:
        fd = os.open(self._folder / f"{self._number}.values", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Room is taken in advance: a mapped page without any would end the process when it is written.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, 8 * self._room)
            else:
                os.ftruncate(fd, 8 * self._room)
            self._memory = mmap.mmap(fd, 8 * self._room)
        finally:
            os.close(fd)
        self._doubles = memoryview(self._memory)
        self.values = self._doubles.cast("d")

    def _load(self) -> None:
        path = self._folder / f"{self._number}.index"
        self._index = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.truncate(self._index, whole)  # a line that was being written
        for at, line in index_lines(content[:whole]):
            kind, _, _, _, _, bounds = json.loads(line)
            self._places[line] = at
            self._next = max(self._next, at + (len(bounds) + 2 if kind == "histogram" else 1))
            if kind == "gauge":
                self.values[at] = 0
        # What was counted at a place that no whole line names belongs to nobody.
        for at in range(self._next, min(self._next + 64, self._room)):
            self.values[at] = 0


def index_lines(content: bytes) -> list[tuple[int, str]]:
    """Return the places and the series of an index."""
    found = []
    for line in content.decode(errors="replace").splitlines():
        at, _, series = line.partition(" ")
        if at.isdigit() and series.startswith("["):
            found.append((int(at), series))
    return found
