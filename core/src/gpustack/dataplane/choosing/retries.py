"""How many requests may be tried again, so that trying again never becomes most of the load."""

from __future__ import annotations

from collections.abc import Callable


class RetryBudget:
    """Each request earns a part of a retry, each second a few; what is not spent is kept up to ``burst``.

    ``ratio`` 0.2 lets at most 20 % of the requests be tried again, beside ``per_second`` for a gateway with little to
    do. One budget is for one process, whatever the model: a storm is of the whole gateway.
    """

    def __init__(
        self, clock: Callable[[], float], *, ratio: float = 0.2, per_second: float = 3.0, burst: float = 50.0
    ) -> None:
        self._clock = clock
        self._ratio = ratio
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = clock()
        #: Retries that were refused since the start.
        self.refused = 0

    def request(self) -> None:
        """Count a request that comes from a client."""
        self._left += self._ratio  # what is beyond the burst is lost when somebody looks

    def retry(self) -> bool:
        """Take one retry; False when there is none, and the failure must go to the client."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1.0:
            self.refused += 1
            return False
        self._left -= 1.0
        return True
