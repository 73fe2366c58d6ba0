"""A lock on a file that the operating system lets go when its holder dies."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import IO

from gpustack.kit.errors import GPUStackError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


#: What the system says of a lock that somebody else has.
_HELD = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK})


class FileLock:
    """An exclusive lock held by an open file; the file holds the owner's process number for messages.

    The lock ends with the process, however it ends, so a lock file that stayed behind means nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False when another process holds it.

        Raises OSError when the file cannot be opened, GPUStackError with one line when it cannot be locked at all.
        """
        file = self.path.open("a+", encoding="ascii")
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                return False
            raise GPUStackError(
                f"{self.path} cannot be locked: {error.strerror}; its directory has to be on a file system with locks"
            ) from error
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except BaseException:
            file.close()
            raise
        self._file = file
        return True

    def hand_down(self) -> int:
        """Return the descriptor that keeps the lock, for a program that replaces this one."""
        assert self._file is not None
        return self._file.fileno()

    def take_up(self, fd: int) -> None:
        """Hold the lock that this process had before its program was replaced."""
        os.set_inheritable(fd, False)
        self._file = os.fdopen(fd, "a+", encoding="ascii")

    def holder(self) -> int | None:
        """Return the process number written by the last holder, or None when the file says nothing."""
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Let the lock go; without effect when it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None
