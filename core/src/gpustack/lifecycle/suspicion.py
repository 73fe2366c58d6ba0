"""How long a worker may be silent before a sign of life is missing, by the rhythm that it had so far. Pure.

A suspicion grows with silence, as in the phi accrual failure detector: phi 3 means that a worker with this rhythm is
later than that once in a thousand times. It is for telling that many fall silent at once, before the first of them is
lost. When one is lost does not depend on it: everybody has the same time, in which two signs of life fail to come,
so that a loss is seen as early with a worker whose signs of life come irregularly, over a bad link or from a busy machine.
"""

from __future__ import annotations

import math
from collections import deque

#: Gaps that are looked back at: five minutes of heartbeats.
_MOST = 32
#: Fewer tell nothing.
_FEWEST = 4
#: So many deviations above the mean lies what comes once in 10^3 (phi 3) times.
_LATE = 3.09


class Rhythm:
    """When a worker's signs of life came: the gaps between them, in seconds."""

    __slots__ = ("_gaps", "_mean", "_spread")

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_MOST)
        self._mean = self._spread = 0.0

    def note(self, gap: float, *, longest: float) -> None:
        """Take in the gap before a sign of life.

        One above ``2 * longest`` was an outage and no rhythm; one far below it belongs to a start, or to news.
        """
        if not longest / 20 <= gap <= 2 * longest:
            return
        self._gaps.append(gap)
        self._mean = sum(self._gaps) / len(self._gaps)
        # Only lateness counts: who speaks early as well is not the less reliable.
        late = sum(max(0.0, each - self._mean) ** 2 for each in self._gaps)
        self._spread = math.sqrt(late / len(self._gaps))

    def late(self, longest: float) -> float:
        """Return the seconds of silence after which a sign of life is missing: at most ``longest``."""
        if len(self._gaps) < _FEWEST:
            return longest
        return min(max(1.25 * self._mean, self._mean + _LATE * self._spread), longest)
