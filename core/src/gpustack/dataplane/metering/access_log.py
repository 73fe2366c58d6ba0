"""The access log: a line of JSON for each request, in one file for all gateway processes, rotated by size."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from gpustack.dataplane.metering.behind import Behind
from gpustack.dataplane.metering.frames import Entry
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.kit.text import plural

log = logging.getLogger(__name__)

#: Bytes of one file, and how many older ones stay.
SIZE, KEEP = 64 << 20, 4
#: Lines that may wait for a disk that takes none.
_WAITING = 50_000
#: Seconds between two rounds of writing: few enough lines that formatting them delays nobody.
_PACE = 0.02


class Line(msgspec.Struct, omit_defaults=True):
    """One request. Counts are bytes or tokens, durations seconds; what is unknown is left out."""

    #: Seconds since the epoch; written as in ``2026-11-27T10:21:47.123Z``.
    time: float | str
    request_id: str
    method: str
    path: str
    status: int
    duration: float
    bytes_in: int = 0
    bytes_out: int = 0
    peer: str | None = None
    user: str | None = None
    user_id: int | None = None
    key_id: int | None = None
    #: The public name that was asked for, and what answered.
    route: str | None = None
    model: str | None = None
    instance_id: int | None = None
    queued: float | None = None
    time_to_first_token: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    error: str | None = None


#: A request for a model: what is in the journal too, its id, method, path, bytes in and out, peer, the user's name,
#: retries, what went wrong. Lines are made of it in the thread: many at once cost a fraction of each alone.
Answered = tuple[Entry, bytes, bytes, bytes, int, int, str, str, int, str]


def _line(told: Answered) -> Line:
    entry, number, method, path, bytes_in, bytes_out, peer, user, retries, error = told
    # In the order of the fields: by name they would cost seven times as much.
    return Line(
        entry.at,
        number.decode("latin-1"),
        method.decode("latin-1"),
        path.decode("latin-1"),
        entry.status,
        entry.duration,
        bytes_in,
        bytes_out,
        peer or None,
        user,
        entry.user_id,
        entry.key_id,
        entry.route or None,
        entry.model or None,
        entry.instance_id,
        entry.queued or None,
        entry.time_to_first_token,
        entry.prompt_tokens or None,
        entry.completion_tokens or None,
        retries,
        error or None,
    )


class AccessLog:
    """Writes lines to ``path`` behind the event loop's back; several processes may share one path.

    Lines of a process killed in that moment are lost, some milliseconds of them: what is billed is in the journal.
    """

    def __init__(self, path: Path, *, size: int = SIZE, keep: int = KEEP) -> None:
        self._path = path
        self._size = size
        self._keep = keep
        self._lines: deque[Line | Answered] = deque()
        self._left = b""
        self._fd = -1
        self._dropped = self._told = 0
        self._second, self._stamp = 0, ""
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._behind = Behind(f"the access log {path}", self._write, pace=_PACE)

    def __enter__(self) -> Self:
        """Begin. Raises GPUStackError when the file's folder cannot be written to."""
        make_dir(self._path.parent, what="the access log's directory")
        self._behind.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, for two seconds at most."""
        if self._behind.stop() and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, line: Line | Answered) -> None:
        """Take a line, or what it is made of. It must not be changed afterwards."""
        if len(self._lines) >= _WAITING:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._behind.awake:
            self._behind.wake()

    # Below, everything runs in the thread.

    def _write(self) -> None:
        self._flush()  # what the disk did not take the last time
        if taken := [self._lines.popleft() for _ in range(len(self._lines))]:
            lines = [each if isinstance(each, Line) else _line(each) for each in taken]
            for line in lines:
                line.time = self._iso(line.time)
            self._left = self._encode_lines(lines)
            self._flush()
        if (lost := self._dropped - self._told) > 0:
            self._told += lost
            log.error("%s: %s were lost: the disk took none for too long", self._path, plural(lost, "line"))

    def _iso(self, at: float | str) -> str:
        if isinstance(at, str):
            return at
        second = int(at)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((at - second) * 1000):03d}Z"

    def _flush(self) -> None:
        if not self._left:
            return
        self._follow()
        while self._left:
            self._left = self._left[os.write(self._fd, self._left) :]
        if os.fstat(self._fd).st_size >= self._size:
            self._rotate()

    def _follow(self) -> None:
        """Open the file, and the new one when another process has rotated it or somebody moved it away."""
        if self._fd >= 0 and not self._is_current():
            os.close(self._fd)
            self._fd = -1
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o640)

    def _is_current(self) -> bool:
        try:
            at_path = self._path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (mine.st_dev, mine.st_ino) == (at_path.st_dev, at_path.st_ino)

    def _rotate(self) -> None:
        lock = FileLock(self._path.with_name(f".{self._path.name}.lock"))
        if not lock.acquire():
            return  # another process does it
        try:
            if not self._is_current():
                return  # or has done it
            for number in range(self._keep, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number}")
                newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
                if newer.exists():
                    newer.replace(older)
            if not self._keep:
                self._path.unlink()
        finally:
            lock.release()
