"""The last records in memory that outlives the process: what ``kill -9`` must not lose before the disk has it."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from gpustack.dataplane.metering.frames import Numbered, read_run

#: Bytes of records that the disk does not have yet: a second of some thousand requests.
SIZE = 1 << 20
#: How much of that is used while the disk keeps up: memory that nobody needed is never touched, and what is used again
#: soon is still in the processor's cache.
USUAL = 1 << 17


class Tail:
    """A piece of shared memory that frames are copied into, a memory copy each and no system call.

    The pages belong to the file, not to the process, so that whoever comes next finds them in it. The file should lie
    in memory (``/dev/shm``): then no write to it ever waits for a disk. Its space is taken in advance, since writing to
    a mapped page that the file system has no room for ends a process.
    """

    __slots__ = ("_at", "_map", "_size", "_usual", "path")

    def __init__(self, path: Path, size: int = SIZE, usual: int = USUAL) -> None:
        """Create the file. Raises OSError where that, or taking its space, fails."""
        self.path = path
        self._map = shared_memory(path, size)
        self._size = size
        self._usual = min(usual, size)
        # Touched now, so that no request waits for a page.
        self._map[: self._usual] = bytes(self._usual)
        self._at = 0

    def add(self, frame: bytes, *, late: bool = False) -> bool:
        """Keep a frame; False when what is usual is full, or all of it where the disk is ``late``."""
        memory, at = self._map, self._at
        end = at + len(frame)
        if end >= self._usual and not (late and end < self._size):
            return False
        # What follows is made no frame first: an old one there could have the next number.
        memory[end] = 0
        memory[at:end] = frame
        self._at = end
        return True

    def restart(self) -> None:
        """Forget all: the disk has everything."""
        self._at = 0
        self._map[0] = 0

    def remove(self) -> None:
        """Remove the file; the memory goes with it."""
        self._map.close()
        self.path.unlink(missing_ok=True)


def shared_memory(path: Path, size: int) -> mmap.mmap:
    """Return the memory of a new file, for this user only. Raises OSError where that, or taking its space, fails."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def content_of(path: Path) -> bytes:
    """Return what a process of this user left at ``path``, nothing when there is no such file."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(fd, "rb") as file:
            # Memory is a place where others may put files.
            if not hasattr(os, "geteuid") or os.fstat(file.fileno()).st_uid == os.geteuid():
                return file.read()
    return b""


def read_tail(path: Path) -> list[Numbered]:
    """Return the records in a tail that a process of this user left, none when there is no such file."""
    return read_run(content_of(path))
