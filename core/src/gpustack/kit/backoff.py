"""How long to wait before trying again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Waits that double from ``first`` to ``limit`` seconds.

    >>> wait = Backoff(first=1, limit=5)
    >>> [wait.next() for _ in range(4)]
    [1.0, 2.0, 4.0, 5]
    """

    first: float = 0.5
    limit: float = 30.0
    failures: int = 0

    def next(self) -> float:
        """Return the seconds to wait now, and remember one more failure."""
        seconds = delay(self.failures, first=self.first, limit=self.limit)
        self.failures += 1
        return seconds

    def reset(self) -> None:
        """Forget the failures, after a success."""
        self.failures = 0


def delay(failures: int, *, first: float, limit: float) -> float:
    """Return the wait in seconds after ``failures`` failures in a row, counting from 0."""
    return min(limit, first * float(2 ** min(failures, 32)))
