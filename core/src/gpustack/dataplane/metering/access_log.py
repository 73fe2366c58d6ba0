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
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.kit.text import plural

log = logging.getLogger(__name__)

#: Bytes of one file, and how many older ones stay.
SIZE, KEEP = 64 << 20, 4
#: Lines that may wait for a disk that takes none.
_WAITING = 50_000
#: Seconds between two rounds of writing.
_PACE = 0.02


class Line(msgspec.Struct, omit_defaults=True, gc=False):
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


class AccessLog:
    """Writes lines to ``path`` behind the event loop's back; several processes may share one path.

    Lines of a process killed in that moment are lost, some milliseconds of them: what is billed is in the journal.
    """

    def __init__(self, path: Path, *, size: int = SIZE, keep: int = KEEP) -> None:
        self._path = path
        self._size = size
        self._keep = keep
        self._lines: deque[bytes] = deque()
        self._left = b""
        self._fd = -1
        self._dropped = self._told = 0
        self._second, self._stamp = 0, ""
        self._encode = msgspec.json.Encoder().encode
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

    def write(self, line: Line) -> None:
        """Take a line. It is written out at once, while all of it is at hand: later that costs three times as much."""
        if len(self._lines) >= _WAITING:
            self._dropped += 1
            return
        at = line.time
        if isinstance(at, float):
            second = int(at)
            if second != self._second:
                self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            line.time = f"{self._stamp}.{int((at - second) * 1000):03d}Z"
        self._lines.append(self._encode(line))
        if not self._behind.awake:
            self._behind.wake()

    # Below, everything runs in the thread.

    def _write(self) -> None:
        self._flush()  # what the disk did not take the last time
        if taken := [self._lines.popleft() for _ in range(len(self._lines))]:
            taken.append(b"")
            self._left = b"\n".join(taken)
            self._flush()
        if (lost := self._dropped - self._told) > 0:
            self._told += lost
            log.error("%s: %s were lost: the disk took none for too long", self._path, plural(lost, "line"))

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
