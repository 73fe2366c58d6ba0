"""The journal's files of one writer: numbered segments, how far they were acknowledged, and the lock of who writes.

In a directory of mode 0700, all of them 0600: ``<writer>.<number of its first record>.log`` with records as
:mod:`~gpustack.dataplane.metering.frames` has them, ``<writer>.ack`` and ``<writer>.lock``. Everything here may wait
for the disk, so that it runs in threads.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from gpustack.dataplane.metering import frames
from gpustack.dataplane.metering.frames import LONGEST, Numbered, unframe

_NAME = re.compile(r"([0-9a-f]{16})\.(?:(\d{1,20})\.log|ack|lock)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on."""

    path: Path
    offset: int


@dataclass(slots=True)
class Spool:
    """The segments of one writer, read from the oldest record that was not acknowledged."""

    directory: Path
    writer: str
    acknowledged: int = 0
    #: Lines that were not whole, which happens at the place where a machine lost its power.
    broken: int = 0
    _place: Place | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self) -> None:
        """Take up where the last reader ended."""
        with contextlib.suppress(OSError, ValueError):
            self.acknowledged = int((self.directory / f"{self.writer}.ack").read_text(encoding="ascii"))

    def segments(self) -> list[tuple[int, Path]]:
        """Return the first number and the path of each, oldest first."""
        return sorted(
            (int(match[2]), path)
            for path in self.directory.glob(f"{self.writer}.*.log")
            if (match := _NAME.fullmatch(path.name)) is not None and match[2]
        )

    def create(self, first: int) -> int:
        """Return a descriptor that appends to a new segment."""
        path = self.directory / f"{self.writer}.{first}.log"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def read(self, limit: int) -> tuple[list[Numbered], Place | None]:
        """Return at most ``limit`` records that were not acknowledged, oldest first, and where to go on after them."""
        with self._lock:
            records: list[Numbered] = []
            place = self._place
            for path, offset in self._ahead(place):
                try:
                    place = self._read_one(path, offset, limit, records)
                except FileNotFoundError:  # given up meanwhile, to keep the bound
                    continue
                if len(records) >= limit:
                    break
            return records, place

    def _ahead(self, place: Place | None) -> list[tuple[Path, int]]:
        segments = self.segments()
        paths = [path for _, path in segments]
        if place is not None and place.path in paths:
            later = paths[paths.index(place.path) :]
            return [(path, place.offset if path == place.path else 0) for path in later]
        # Everything before the last one that begins early enough was acknowledged.
        begin = max(0, sum(first <= self.acknowledged + 1 for first, _ in segments) - 1)
        return [(path, 0) for path in paths[begin:]]

    def _read_one(self, path: Path, offset: int, limit: int, records: list[Numbered]) -> Place:
        with path.open("rb") as file:
            file.seek(offset)
            while len(records) < limit:
                line = file.readline(LONGEST + 1)
                if line[-1:] != b"\n" and len(line) <= LONGEST:
                    break  # being written, or torn: the next line, if any, is in another segment
                offset += len(line)
                if (found := unframe(line)) is None:
                    self.broken += 1
                elif found[0] > self.acknowledged:
                    records.append(found)
        return Place(path, offset)

    def acknowledge(self, number: int, place: Place | None) -> None:
        """Note that everything up to ``number`` arrived; remove what holds nothing else, but for the last segment."""
        with self._lock:
            if number <= self.acknowledged:
                return
            self.acknowledged = number
            self._place = place
            # A short write to the same place: who dies meanwhile leaves the number before or this one.
            fd = os.open(
                self.directory / f"{self.writer}.ack", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                os.pwrite(fd, b"%020d" % number, 0)
            finally:
                os.close(fd)
            segments = self.segments()
            for (_, path), (following, _) in pairwise(segments):
                if following <= number + 1:
                    path.unlink(missing_ok=True)

    def size(self) -> int:
        """Return the bytes of all segments."""
        total = 0
        for _, path in self.segments():
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def give_up_oldest(self) -> int | None:
        """Remove the oldest segment if it is not the only one; return how many records nobody got, None if it stays."""
        with self._lock:
            segments = self.segments()
            if len(segments) < 2:
                return None
            path = segments[0][1]
            try:
                records, _ = frames.read(path.read_bytes())
            except OSError:
                records = []
            path.unlink(missing_ok=True)
            return sum(number > self.acknowledged for number, _ in records)

    def rescue(self, records: list[Numbered]) -> None:
        """Append what a dead writer's memory held and its segments do not, as one more segment."""
        last = self.last()
        missing = [(number, record) for number, record in records if number > last]
        if not missing:
            return
        fd = self.create(missing[0][0])
        try:
            left = b"".join(frames.frame(number, record) for number, record in missing)
            while left:
                left = left[os.write(fd, left) :]
        finally:
            os.close(fd)

    def last(self) -> int:
        """Return the number of the last record."""
        for first, path in reversed(self.segments()):
            records, _ = frames.read(path.read_bytes())
            if records:
                return max(number for number, _ in records)
            if first > 1:
                return first - 1
        return 0

    def remove(self) -> None:
        """Remove all files but the lock."""
        for _, path in self.segments():
            path.unlink(missing_ok=True)
        (self.directory / f"{self.writer}.ack").unlink(missing_ok=True)


def writers_in(directory: Path) -> set[str]:
    """Return the writers that have files in ``directory``."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return set()
    return {match[1] for name in names if (match := _NAME.fullmatch(name)) is not None}
