"""Reading a file of which nothing is believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import human_bytes

#: How a file of weights is opened: here, or where it lies on a hub.
Opener = Callable[[Path], IO[bytes]]

#: No header is longer; a real one with a vocabulary of 250,000 words has about 15 MB.
HEADER_LIMIT = 256 << 20


def open_local(path: Path) -> IO[bytes]:
    """Open a file of this machine for reading its header."""
    return path.open("rb", buffering=1 << 17)


class Reader:
    """Takes little-endian values from the start of ``file``; never more than the file has.

    Raises InvalidInput, naming the file, where it ends too early.
    """

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size
        self.position = 0
        self._texts = 0

    def need(self, count: int) -> None:
        """Check that ``count`` more bytes are there and still count as a header."""
        end = self.position + count
        if end > self._size:
            raise InvalidInput(
                f"{self._path} is truncated or damaged: its header goes on beyond the "
                f"{human_bytes(self._size)} that the file has; copy or download it again"
            )
        if end > HEADER_LIMIT:
            raise InvalidInput(
                f"{self._path} is damaged: its header claims more than {human_bytes(HEADER_LIMIT)}"
            )

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        self.need(count)
        data = self._file.read(count)
        if len(data) != count:
            raise InvalidInput(f"{self._path} changed while it was read; wait until it is complete")
        self.position += count
        return data

    def skip(self, count: int) -> None:
        """Go on ``count`` bytes further without keeping them."""
        self.need(count)
        self._file.seek(count, 1)
        self.position += count

    def skip_texts(self, count: int, *, limit: int) -> None:
        """Go on behind ``count`` texts, each led by its length; of all such calls together ``limit`` at most."""
        self.need(count * 8)
        self._texts += count
        if self._texts > limit:
            raise self.damaged(f"it claims more than {limit} texts")
        for _ in range(count):
            self.skip(int.from_bytes(self.take(8), "little"))

    def number(self, code: str) -> Any:
        """Return one value of the struct type ``code``."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def damaged(self, what: str) -> InvalidInput:
        """Return the error that says what in the file makes no sense."""
        return InvalidInput(
            f"{self._path} is damaged: {what} (near byte {self.position}); copy or download it again"
        )


def whole(value: Any, *, limit: int = 1 << 53) -> int:
    """Return ``value`` when it is an integer from 0 to ``limit``, else 0: headers hold all sorts of things."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not value.is_integer():
        return 0
    return int(value) if 0 <= value <= limit else 0


def clean(value: Any, *, limit: int = 200) -> str:
    """Return ``value`` when it is text, in one printable line of at most ``limit`` characters, else nothing."""
    if not isinstance(value, str):
        return ""
    return " ".join("".join(c if c.isprintable() else " " for c in value[: limit * 4]).split())[:limit]
