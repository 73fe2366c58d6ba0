"""Slows down whoever guesses passwords."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from gpustack.kit.backoff import delay
from gpustack.kit.errors import Throttled


@dataclass(slots=True)
class _Record:
    failures: int = 0
    until: float = 0.0
    last: float = 0.0


class Throttle:
    """Counts failures by any key; after ``free`` of them each further one doubles the wait.

    An attempt is counted when it begins, so that many at once gain nothing; success forgets it. Waiting
    ``memory`` seconds forgets too. No more than ``size`` keys are remembered.
    """

    def __init__(
        self,
        *,
        free: int = 5,
        first: float = 1.0,
        limit: float = 300.0,
        memory: float = 3600.0,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free, self._first, self._limit = free, first, limit
        self._memory, self._size, self._clock = memory, size, clock
        self._records: OrderedDict[Hashable, _Record] = OrderedDict()

    def begin(self, key: Hashable) -> None:
        """Count an attempt. Raises Throttled with the seconds to wait while ``key`` is blocked."""
        now = self._clock()
        record = self._records.pop(key, None)
        if record is None or now - record.last > self._memory:
            record = _Record()
        self._records[key] = record
        while len(self._records) > self._size:
            self._records.popitem(last=False)
        if now < record.until:
            wait = record.until - now
            raise Throttled(f"too many failed sign-ins; try again in {wait:.0f} s", retry_after=wait)
        record.failures += 1
        record.last = now
        if record.failures > self._free:
            record.until = now + delay(record.failures - self._free - 1, first=self._first, limit=self._limit)

    @contextlib.contextmanager
    def attempt(self, key: Hashable, failure: type[Exception]) -> Iterator[None]:
        """Make an attempt that counts only when the block raises ``failure``: nothing else is a wrong password.

        Raises Throttled while ``key`` is blocked.
        """
        self.begin(key)
        try:
            yield
        except failure:
            raise
        except BaseException:
            self.excuse(key)
            raise
        self.excuse(key)

    def succeeded(self, key: Hashable) -> None:
        """Forget the failures of ``key``."""
        self._records.pop(key, None)

    def excuse(self, key: Hashable) -> None:
        """Take back one attempt that was not a failure, where others under the same key may have been."""
        if (record := self._records.get(key)) is not None and record.failures:
            record.failures -= 1
            record.until = 0.0
