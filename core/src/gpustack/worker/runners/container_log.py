"""The log of an engine in a container: what the container engine keeps of it, written to the instance's own file.

Where the file ends is written beside the record, by the time that the container engine gave the last piece: so whoever
comes after a crash goes on there, and no line comes twice or is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from docker import APIClient

_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d) ?")


def position_path(run_dir: Path, instance_id: int) -> Path:
    """Return the file that says how far the log of an instance was written."""
    return run_dir / "instances" / f"{instance_id}.log-position"


class ContainerLog:
    """Appends to the file of an instance; closed by ``with``. Raises OSError when the files cannot be opened."""

    def __init__(self, path: Path, position: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            self._position = os.open(position, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except BaseException:
            os.close(self._file)
            raise
        self.last = os.pread(self._position, 64, 0).decode("ascii", "replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._position)

    def options(self) -> dict[str, Any]:
        """Return what the SDK's ``logs`` is asked for, to get what is not written yet, and maybe a little more."""
        options: dict[str, Any] = {"stdout": True, "stderr": True, "timestamps": True, "stream": True}
        if self.last:
            options["since"] = max(1, _seconds(self.last))
        return options

    def take(self, pieces: Iterable[bytes]) -> None:
        """Write ``pieces`` as they come, each with the time that the container engine gave it."""
        for piece in pieces:
            stamp, text = parted(piece)
            # The engine goes back to the beginning of the second; times are of one length, so they compare as text.
            if stamp and self.last and stamp <= self.last:
                continue
            os.write(self._file, text)
            if stamp:
                self.last = stamp
                os.pwrite(self._position, f"{stamp}\n".encode("ascii"), 0)


def parted(piece: bytes) -> tuple[str, bytes]:
    """Return the time of a piece of log, to the nanosecond and in one length, and its text; "" for one without a time."""
    found = _STAMP.match(piece)
    if found is None:
        return "", piece
    fraction = (found[2] or b"").ljust(9, b"0").decode()
    zone = "Z" if found[3] in (b"Z", b"+00:00", b"-00:00") else found[3].decode()
    return f"{found[1].decode()}.{fraction}{zone}", piece[found.end() :]


def _seconds(stamp: str) -> int:
    from datetime import datetime

    whole, _, rest = stamp.partition(".")
    return int(datetime.fromisoformat(whole + rest[9:].replace("Z", "+00:00")).timestamp())


def catch_up(client: APIClient, container: str, log: ContainerLog) -> None:
    """Write what the container engine has and the file has not. Raises what the SDK raises, and OSError."""
    stream = client.logs(container, follow=False, **log.options())
    try:
        log.take(stream)
    finally:
        close(stream)


def close(stream: Any) -> None:
    """Close a stream of the SDK's, from any thread: whoever reads it is at its end then."""
    # Its own way ends the reading; the connection is closed by that of the answer that it came with.
    for end in (stream.close, getattr(getattr(stream, "_response", None), "close", None)):
        if end is not None:
            with contextlib.suppress(OSError, AttributeError, ValueError):  # it has ended from its other side
                end()
