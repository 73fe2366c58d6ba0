"""Writing to disks behind the event loop's back: they may be slow or hang, and no request waits for them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds between two rounds while there is something to write. Rare large writes would hold the interpreter longer.
PACE = 0.01


class Behind:
    """A thread that calls ``write`` while there is something to write, at a steady pace.

    ``wake`` costs nothing while the thread is awake. What ``write`` raises is logged once, until it works again.
    """

    def __init__(self, name: str, write: Callable[[], None], *, pace: float = PACE) -> None:
        self._name = name
        self._write = write
        self._pace = pace
        #: Whether the thread is about to look: then :meth:`wake` need not be called.
        self.awake = False
        self._ending = False
        self._failing = False
        self._signal = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the thread ends with :meth:`stop` or with the process."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something to write. Called on the event loop, for every line."""
        if not self.awake:
            self.awake = True
            self._signal.set()

    def stop(self, timeout: float = 2.0) -> bool:
        """Write what is left and end; False when that took longer than ``timeout`` seconds, as on a disk that hangs."""
        self._ending = True
        self._signal.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last = False
        while not last:
            self._signal.wait()
            self._signal.clear()
            # From here on a new line wakes again: it is written in this round or the next.
            self.awake = False
            last = self._ending
            self._round()
            time.sleep(0 if last else self._pace)

    def _round(self) -> None:
        try:
            self._write()
            if self._failing:
                log.warning("%s: can be written again", self._name)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("%s cannot be written: %s; it is tried again", self._name, error)  # noqa: TRY400
            self._failing = True
            # Try again without being woken, but not at once.
            time.sleep(0 if self._ending else 0.2)
            self._signal.set()
        except Exception:
            log.exception("%s failed", self._name)
