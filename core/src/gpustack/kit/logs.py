"""One way of logging: the time, the level, the thing's name first, no colour, to standard error.

A thread writes: the disk that holds a log may be slow or hang, and nobody's request waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

#: Lines that wait for the disk; further ones are dropped, and how many is said once it takes lines again.
_WAITING = 10_000
#: Seconds that the end of the process waits for the last lines.
_LAST = 1.0

#: ``extra`` of a line that the person who started GPUStack is to see, too.
TELL: dict[str, Any] = {"tell": True}


def configure(role: str, *, debug: bool = False) -> None:
    """Log lines of this process to standard error, each with ``role`` (server, worker, …) in front."""
    handler = _Behind(sys.stderr.fileno())
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)-7s {role} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    )
    logging.getLogger().handlers[:] = [handler]
    set_debug(debug)


def set_debug(debug: bool) -> None:
    """Log everything, or what people want to read in a calm hour."""
    logging.getLogger().setLevel(logging.DEBUG if debug else logging.INFO)
    for chatty in ("httpx", "httpcore", "asyncio", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.NOTSET if debug else logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.INFO if debug else logging.WARNING)


def tell(say: Callable[[str], None]) -> None:
    """Give each line that is logged with ``extra=TELL`` to ``say`` as well."""
    logging.getLogger().addHandler(_Teller(say))


class _Behind(logging.Handler):
    """Hands lines to a thread that writes them to a descriptor; nobody waits, but the end of the process a little.

    It writes past ``sys.stderr``, whose lock a write that hangs would keep, and the interpreter's end waits for that.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line, unless too many wait."""
        try:
            # Its arguments may change until it is written.
            record.msg, record.args = record.getMessage(), None
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1
        except Exception:  # noqa: BLE001 - whatever a wrong log line raises must not reach who logs
            self.handleError(record)

    def _write(self) -> None:
        while (record := self._lines.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                record.msg = f"({dropped} lines before this one were lost: the log took none) {record.msg}"
            left = (self.format(record) + "\n").encode(errors="backslashreplace")
            # A disk that is full: there is nobody to tell, and the next line may fit again.
            with contextlib.suppress(OSError):
                while left:
                    left = left[os.write(self._fd, left) :]

    def _finish(self) -> None:
        try:
            self._lines.put(None, timeout=_LAST)
        except queue.Full:
            return
        self._thread.join(_LAST)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message alone."""
        if getattr(record, "tell", False):
            self._say(record.getMessage())
