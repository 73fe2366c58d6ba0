"""When to look again, without looking in between."""

from __future__ import annotations

import heapq
from collections.abc import Hashable

#: Times in the queue that nobody waits for any more, beyond as many as are waited for.
_MOST_STALE = 64


class Timers:
    """One time per key, the earliest first. Moving a time later costs nothing until the old one comes up."""

    def __init__(self) -> None:
        self._due: dict[Hashable, float] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._queued: dict[Hashable, float] = {}
        self._count = 0

    def put(self, key: Hashable, due: float) -> None:
        """Set or move the time of ``key``."""
        self._due[key] = due
        # A heartbeat moves its worker's time later every few seconds; the queued one leads to the new one.
        if self._queued.get(key, float("inf")) > due:
            self._push(key, due)

    def drop(self, key: Hashable) -> None:
        """Forget ``key``; without effect when it is not known."""
        if self._due.pop(key, None) is not None and len(self._heap) > 2 * len(self._due) + _MOST_STALE:
            self._tidy()

    def pop(self, now: float) -> list[Hashable]:
        """Return and forget the keys whose time has come."""
        ready: list[Hashable] = []
        while self._heap and self._heap[0][0] <= now:
            queued, _, key = heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue  # an earlier time was queued after this one
            del self._queued[key]
            due = self._due.get(key)
            if due is None:
                continue
            if due <= now:
                del self._due[key]
                ready.append(key)
            else:
                self._push(key, due)
        return ready

    def next(self) -> float | None:
        """Return a time before which :meth:`pop` returns nothing, or None when nothing is waited for."""
        return self._heap[0][0] if self._heap else None

    def _tidy(self) -> None:
        """Make the queue anew of what is waited for: what was dropped may have been due in an hour."""
        self._queued = dict(self._due)
        self._heap = [(due, number, key) for number, (key, due) in enumerate(self._due.items())]
        heapq.heapify(self._heap)
        self._count = len(self._heap)

    def _push(self, key: Hashable, due: float) -> None:
        self._count += 1  # keys need not be comparable
        self._queued[key] = due
        heapq.heappush(self._heap, (due, self._count, key))
