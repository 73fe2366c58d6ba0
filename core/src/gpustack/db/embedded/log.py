"""PostgreSQL's log file: appended to, read from for reasons, and kept from growing without end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from gpustack.db.embedded.child import reason_in
from gpustack.kit.errors import GPUStackError

#: Bytes after which the file begins anew; what it held goes to ``postgresql.log.1``.
MAX_SIZE = 16 * 1024 * 1024
_TAIL = 64 * 1024


class ServerLog:
    """The file ``path``; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> BinaryIO:
        """Open it for appending, for a child to inherit. Raises GPUStackError when it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("ab")
        except OSError as error:
            raise GPUStackError(
                f"{self.path} cannot be written: {error.strerror}; change its owner"
            ) from error

    def size(self) -> int:
        """Return its size in bytes, 0 when there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def reason_since(self, offset: int) -> str:
        """Return the line after ``offset`` that tells why PostgreSQL failed, or ""."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(min(offset, self.size()), self.size() - _TAIL))
                return reason_in(file.read().decode(errors="replace"))
        except OSError:
            return ""

    def cap(self) -> None:
        """Begin anew when it is larger than ``MAX_SIZE``.

        It is copied and emptied, since PostgreSQL keeps it open; lines of the very moment in between may be lost.
        """
        if self.size() <= MAX_SIZE:
            return
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        with self.path.open("r+b") as file:
            file.truncate(0)
