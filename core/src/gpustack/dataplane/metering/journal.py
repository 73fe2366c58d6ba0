"""The journal of what was metered: a record that was appended is delivered at least once, whatever dies.

``append`` copies a record into memory that outlives the process (:mod:`~gpustack.dataplane.metering.tail`) and returns;
a thread writes it to the process's own segment a few milliseconds later. Killing the process loses nothing, the
machine's loss of power what the system had not written yet (segments are synced when they are full). Streams that are
open are kept in the same way, with what came so far (:mod:`~gpustack.dataplane.metering.open_streams`). What dead
processes left is adopted by whichever looks first. Delivery is somebody else's::

    async with Journal(directory) as journal:
        journal.append(UsageRecord(id=journal.new_id(), …))
        while True:
            batch = await journal.next_batch(500)
            await deliver(batch.records)  # again and again, until it arrived
            await journal.acknowledge(batch)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from gpustack.dataplane.metering.behind import Behind
from gpustack.dataplane.metering.frames import Entry, Numbered, frame
from gpustack.dataplane.metering.open_streams import FILES, OpenStream, OpenStreams, read_open
from gpustack.dataplane.metering.spool import Place, Spool, writers_in
from gpustack.dataplane.metering.tail import Tail, read_tail
from gpustack.dataplane.metering.usage import Tally
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.kit.text import human_bytes, plural
from gpustack.plugin.routing import UsageRecord

log = logging.getLogger(__name__)

#: Bytes of one segment, after which it is synced and the next one begins.
SEGMENT = 4 << 20
#: Bytes of all that a process holds for a server that does not take it: some two million records.
MOST = 1 << 30
#: Seconds between two rounds of writing: what the process leaves in memory outlives it, and each round disturbs the loop.
_PACE = 0.03
#: Records that may wait for a disk that takes none.
_WAITING = 100_000
#: The newest records, which are told without being read again.
_RECENT = 3000
#: Seconds between two looks for new records, and for what dead processes left.
_LOOK, _ADOPT = 0.1, 10.0
#: Memory that every Linux has, and that no disk slows down.
_MEMORY = Path("/dev/shm")  # noqa: S108 - names are unguessable, files private


@dataclass(frozen=True, slots=True)
class Batch:
    """Records to deliver, oldest first, and where they are from."""

    #: Whatever they were written as; encoded, both are the same.
    entries: tuple[UsageRecord | Entry, ...]
    writer: str
    last: int
    place: Place | None

    @property
    def records(self) -> tuple[UsageRecord, ...]:
        """The records as such."""
        return tuple(each.record if isinstance(each, Entry) else each for each in self.entries)


@dataclass(slots=True)
class _Adopted:
    spool: Spool
    lock: FileLock


class Journal:
    """One process's journal. Every method is for the event loop; ``append`` never waits."""

    def __init__(
        self,
        directory: Path,
        *,
        memory: Path | None = None,
        segment_bytes: int = SEGMENT,
        most_bytes: int = MOST,
    ) -> None:
        self._directory = directory
        self._memory = memory or (_MEMORY if os.access(_MEMORY, os.W_OK) else directory)
        self._segment_bytes = segment_bytes
        self._most_bytes = most_bytes
        self._behind = Behind("the usage journal", self._write, pace=_PACE)
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._recent: deque[tuple[int, UsageRecord | Entry]] = deque(maxlen=_RECENT)
        self._unwritten = b""
        self._number = self._taken = self._written = self._ids = 0
        self._adopted: list[_Adopted] = []
        self._adopt_at = 0.0
        #: Set by the first record after everything has arrived; None while nobody waits for one.
        self._first: asyncio.Event | None = None
        self._fd = -1
        self._segment_size = 0
        #: Two, used in turn: one is free again when the disk has all that is in it.
        self._tails: list[Tail] = []
        self._tail_ends = [0, 0]
        self._turn = 0
        #: Records lost since the disk was full or hung, since the server was away for too long, and those told of.
        self._lost_here = self._lost_later = self._lost_told = self._lost_known = 0

    async def __aenter__(self) -> Self:
        """Begin a new segment, and adopt what dead processes left. Raises GPUStackError when there is no place for it."""
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left; what was not acknowledged is delivered by the next process."""
        for record in self._streams.left():
            self.append(record)
        await asyncio.to_thread(self._close)

    def new_id(self) -> str:
        """Return an id that no other process makes, today or ever."""
        self._ids += 1
        return f"{self._spool.writer}-{self._ids:x}"

    def begin(self, entry: Entry, began: float, tally: Tally) -> OpenStream | None:
        """Keep a stream that begins: ``entry`` is its record if no piece comes, with its time as of the wall clock.

        ``began`` is when the request came, by the clock that the pieces are noted by, ``tally`` what the engine tells,
        and ``entry.estimated`` whether it takes tokens. ``end`` of what is returned is called when the stream's own
        record, with the same id, is appended. None where there is no memory for it.
        """
        streams = self._streams
        opened = streams.begin(entry, began, tally)
        if streams.scarce:
            self._behind.wake()
        return opened

    def append(self, record: UsageRecord | Entry) -> None:
        """Keep ``record``. From here on the process may be killed."""
        waiting = self._waiting
        if len(waiting) >= _WAITING:
            self._lost_here += 1
            return
        self._number = number = self._number + 1
        line = frame(number, record)
        waiting.append((number, line))
        self._recent.append((number, record))
        if self._tails:
            turn = self._turn
            if self._tails[turn].add(line):
                self._tail_ends[turn] = number
            else:
                self._turn_over(number, line)
        if not self._behind.awake:
            self._behind.wake()
        if self._first is not None:
            self._first.set()
            self._first = None

    def _turn_over(self, number: int, line: bytes) -> None:
        """Go on in the other tail, if the disk has all that is in it."""
        turn = self._turn
        other = 1 - turn
        if self._tail_ends[other] > self._written:
            # When the disk is far behind, nothing more can be kept until it comes after.
            if self._tails[turn].add(line, late=True):
                self._tail_ends[turn] = number
            return
        tail = self._tails[other]
        tail.restart()
        if tail.add(line):
            self._turn, self._tail_ends[other] = other, number

    async def next_batch(self, limit: int = 500) -> Batch:
        """Return the oldest records that were not acknowledged, waiting until there is one.

        Asked again before that, it returns the same ones, and later ones if ``limit`` allows.
        """
        while True:
            if time.monotonic() >= self._adopt_at:
                self._adopt_at = time.monotonic() + _ADOPT
                await asyncio.to_thread(self._adopt)
            for spool in [*(each.spool for each in self._adopted), self._spool]:
                if spool is self._spool:
                    if spool.acknowledged >= self._written:
                        continue
                    if (recent := self._told_recently(limit)) is not None:
                        return recent
                records, place = await asyncio.to_thread(spool.read, limit)
                if records:
                    told = tuple(record for _, record in records)
                    return Batch(told, spool.writer, records[-1][0], place)
                await asyncio.to_thread(self._done_with, spool)
            if not self.pending:
                await self._something()
            # The disk has to have it, and more may come.
            await asyncio.sleep(_LOOK)

    async def _something(self) -> None:
        """Wait for a record, or until it is time to look for those of dead processes."""
        self._first = first = asyncio.Event()
        try:
            async with asyncio.timeout(max(0.0, self._adopt_at - time.monotonic())):
                await first.wait()
        except TimeoutError:
            self._first = None

    def _told_recently(self, limit: int) -> Batch | None:
        """Return the records after those that were acknowledged, if they are at hand and on the disk."""
        recent, last = self._recent, self._spool.acknowledged
        if self._lost_later != self._lost_known:
            self._lost_known = self._lost_later
            recent.clear()  # what was given up is not told either
        while recent and recent[0][0] <= last:
            recent.popleft()
        if not recent or recent[0][0] != last + 1:
            return None
        written = self._written
        found = [record for number, record in islice(recent, limit) if number <= written]
        return Batch(tuple(found), self._spool.writer, last + len(found), None) if found else None

    async def acknowledge(self, batch: Batch) -> None:
        """Note that ``batch`` arrived; it is not told again. Doing that twice is without effect."""
        for spool in [*(each.spool for each in self._adopted), self._spool]:
            if spool.writer == batch.writer:
                await asyncio.to_thread(spool.acknowledge, batch.last, batch.place)

    @property
    def dropped(self) -> int:
        """How many records were lost, which the log says as well: the disk was full, or the server away for days."""
        return self._lost_here + self._lost_later

    @property
    def pending(self) -> int:
        """How many of this process's own records have not arrived yet."""
        return self._number - self._spool.acknowledged

    # Below, everything runs in threads.

    def _open(self) -> None:
        make_dir(self._directory, what="the usage journal's directory", mode=0o700)
        self._directory.chmod(0o700)
        self._lock, self._spool = self._new_writer()
        self._tails = self._new_tails()
        self._streams = OpenStreams(_stream_paths(self._memory, self._spool.writer) if self._tails else [])
        self._streams.grow()
        self._adopt()
        self._adopt_at = time.monotonic() + _ADOPT
        self._behind.start()

    def _new_writer(self) -> tuple[FileLock, Spool]:
        while True:
            writer = secrets.token_hex(8)
            if (lock := _lock(self._directory, writer)) is not None:
                return lock, Spool(self._directory, writer)

    def _new_tails(self) -> list[Tail]:
        tails: list[Tail] = []
        try:
            for path in _tail_paths(self._memory, self._spool.writer):
                tails.append(Tail(path))  # noqa: PERF401 - the first one is known when the second fails
        except OSError as error:
            log.warning(
                "%s: no memory for the last records (%s): killing this process may lose some milliseconds of them",
                self._memory, error,
            )  # fmt: skip
            for tail in tails:
                tail.remove()
            return []
        return tails

    def _adopt(self) -> None:
        mine = {self._spool.writer, *(each.spool.writer for each in self._adopted)}
        for writer in writers_in(self._directory) - mine:
            if (lock := _lock(self._directory, writer)) is None:
                continue  # it lives
            spool = Spool(self._directory, writer)
            try:
                self._rescue(spool)
            except OSError as error:
                log.warning("the usage journal of a dead process cannot be read: %s", error)
            self._adopted = [*self._adopted, _Adopted(spool, lock)]

    def _rescue(self, spool: Spool) -> None:
        """Put what a dead writer's memory holds to its files."""
        spool.load()
        tails = _tail_paths(self._memory, spool.writer)
        streams = _stream_paths(self._memory, spool.writer)
        ended = sorted((record for path in tails for record in read_tail(path)), key=_number)
        spool.rescue(ended)
        # A stream has its own record already if it ended in the last moment.
        known = {record.id for _, record in ended}
        broken_off = [each for path in streams for each in read_open(path) if each.id not in known]
        spool.rescue(list(enumerate(broken_off, spool.last() + 1)))
        for path in (*tails, *streams):
            path.unlink(missing_ok=True)

    def _done_with(self, spool: Spool) -> None:
        """Remove what is left of a dead writer whose records have all arrived."""
        for adopted in self._adopted:
            if adopted.spool is spool:
                if spool.broken:
                    log.warning("%s of the usage journal could not be read", plural(spool.broken, "line"))
                spool.remove()
                (self._directory / f"{spool.writer}.lock").unlink(missing_ok=True)
                adopted.lock.release()
                self._adopted = [each for each in self._adopted if each is not adopted]

    def _write(self) -> None:
        if self._streams.scarce:
            self._streams.grow()
        self._flush()  # what the disk did not take the last time
        if taken := [self._waiting.popleft() for _ in range(len(self._waiting))]:
            self._unwritten = b"".join(line for _, line in taken)
            self._taken = taken[-1][0]
            self._flush()
        self._tell_dropped("the disk took none for too long")

    def _flush(self) -> None:
        if not self._unwritten:
            return
        if self._fd < 0:
            self._fd = self._spool.create(self._written + 1)
            self._segment_size = 0
        while self._unwritten:
            count = os.write(self._fd, self._unwritten)
            self._segment_size += count
            self._unwritten = self._unwritten[count:]
        self._written = self._taken
        if self._segment_size >= self._segment_bytes:
            self._rotate()

    def _rotate(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        spools = [*(each.spool for each in self._adopted), self._spool]
        while sum(spool.size() for spool in spools) > self._most_bytes:
            lost = next((lost for spool in spools if (lost := spool.give_up_oldest()) is not None), None)
            if lost is None:
                break
            self._lost_later += lost
        self._tell_dropped(
            f"the server takes none, and the journal holds at most {human_bytes(self._most_bytes)}"
        )

    def _tell_dropped(self, why: str) -> None:
        total = self.dropped
        if (lost := total - self._lost_told) > 0:
            self._lost_told = total
            log.error("the usage journal lost %s, %d in all: %s", plural(lost, "record"), total, why)

    def _close(self) -> None:
        stopped = self._behind.stop()
        if not stopped:
            log.error("the usage journal's disk does not answer: the last records stay in memory")
            return
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self._unwritten:
            for tail in self._tails:
                tail.remove()
            self._streams.remove()
        for each in self._adopted:
            each.lock.release()
        if self._spool.acknowledged >= self._number and not self._unwritten:
            self._spool.remove()
            (self._directory / f"{self._spool.writer}.lock").unlink(missing_ok=True)
        self._lock.release()


def _number(numbered: Numbered) -> int:
    return numbered[0]


def _tail_paths(memory: Path, writer: str) -> list[Path]:
    return [memory / f"gpustack-usage-{writer}.{turn}" for turn in (0, 1)]


def _stream_paths(memory: Path, writer: str) -> list[Path]:
    return [memory / f"gpustack-usage-{writer}.open.{number}" for number in range(FILES)]


def _lock(directory: Path, writer: str) -> FileLock | None:
    """Return the lock of ``writer``, None when somebody has it."""
    path = directory / f"{writer}.lock"
    lock = FileLock(path)
    if not lock.acquire():
        return None
    path.chmod(0o600)
    # Whoever held it may have removed the file between its opening and its locking.
    assert lock._file is not None
    try:
        same = path.stat().st_ino == os.fstat(lock._file.fileno()).st_ino
    except FileNotFoundError:
        same = False
    if not same:
        lock.release()
        return None
    return lock
