"""What is to be said of the workers as a whole: for the log, the API and the command line."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds that a refused copy is told of after its last attempt; it asks at least every 15.
_KEPT = 60.0
#: More than anybody reads.
_MOST = 100


class FleetNews:
    """Collects what is remarkable; each thing is logged once, when it begins."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silence = ""
        self._copies: dict[str, tuple[str, float]] = {}

    def silent(self, line: str) -> None:
        """Note that most of the fleet is silent; empty: it is not."""
        if bool(line) != bool(self._silence):
            log.warning(
                "%s",
                line or "workers that had fallen silent together are heard again, or are lost one by one",
            )
        self._silence = line

    def refused(self, who: str, line: str) -> None:
        """Note that a worker ``who`` was refused because another one has its identity."""
        if who not in self._recent():
            log.warning("a worker is refused until it has made a key of its own: %s", line)
        while len(self._copies) >= _MOST:
            del self._copies[next(iter(self._copies))]
        self._copies[who] = (line, self._clock())

    def notices(self) -> list[str]:
        """Return what is remarkable now, a line each."""
        return [*([self._silence] if self._silence else []), *(line for line, _ in self._recent().values())]

    def _recent(self) -> dict[str, tuple[str, float]]:
        now = self._clock()
        self._copies = {who: each for who, each in self._copies.items() if now - each[1] <= _KEPT}
        return self._copies
