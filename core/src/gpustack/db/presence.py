"""Whether the database is there: found out by one, for all who wait for it.

While it is away, requests wait for it for a bounded time, and nobody but one prober tries to connect: a thousand that
try at once would only be in its way when it comes back. A loss that lasts longer is answered at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from gpustack.db.errors import OF_THE_DATABASE, unavailable
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Unavailable
from gpustack.kit.tasks import Tasks

log = logging.getLogger(__name__)

#: Who comes when so many wait already is sent away at once: memory is not for queues.
_MOST_WAITING = 1000


class Presence:
    """What is known of the database of one pool. ``probe`` returns when it answers."""

    def __init__(self, where: str, patience: float, probe: Callable[[], Awaitable[None]]) -> None:
        self._where = where
        self._patience = patience
        self._probe = probe
        self._present = asyncio.Event()
        self._present.set()
        self._since = 0.0
        self._why: BaseException = TimeoutError()
        self._waiting = 0
        self._tasks = Tasks("database")

    def lost(self, error: BaseException, *, since: float | None = None) -> None:
        """Learn that a connection broke; ``since`` is the monotonic time when the database last may have been there."""
        if not self._present.is_set():
            return
        self._present.clear()
        self._why = error
        self._since = time.monotonic() if since is None else since
        self._tasks.start("probe", self._look())

    async def wait(self) -> None:
        """Return when the database is there; Unavailable when it has been away for too long, or too many wait."""
        if self._present.is_set():
            return
        left = self._since + self._patience - time.monotonic()
        if left <= 0 or self._waiting >= _MOST_WAITING:
            raise self._unavailable()
        self._waiting += 1
        try:
            async with asyncio.timeout(left):
                await self._present.wait()
        except TimeoutError:
            raise self._unavailable() from self._why
        finally:
            self._waiting -= 1

    @property
    def away(self) -> bool:
        """Whether it is known to be away."""
        return not self._present.is_set()

    async def returned(self) -> None:
        """Return when the database is there, however long that takes."""
        await self._present.wait()

    async def close(self) -> None:
        """Stop looking."""
        await self._tasks.stop()

    def _unavailable(self) -> Unavailable:
        return unavailable(self._why, self._where)

    async def _look(self) -> None:
        backoff = Backoff(first=0.05, limit=1.0)
        while True:
            try:
                await self._probe()
            except Exception as error:  # without a prober, nobody would ever get through again
                if not isinstance(error, OF_THE_DATABASE) and type(error) is not type(self._why):
                    log.exception("%s: looking whether it is there failed", self._where)
                self._why = error
                if backoff.failures == 3:
                    log.warning("%s is away: %s", self._where, " ".join(str(error).split()) or "no answer")
                await asyncio.sleep(backoff.next() * random.uniform(0.5, 1.0))
            else:
                self._say_returned(time.monotonic() - self._since)
                self._present.set()
                return

    def _say_returned(self, seconds: float) -> None:
        log.log(
            logging.WARNING if seconds > 1 else logging.INFO,
            "%s is there again after %.1f s (%s)",
            self._where,
            seconds,
            " ".join(str(self._why).split()) or type(self._why).__name__,
        )
