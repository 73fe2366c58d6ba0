"""Reports on their way to the server: none is lost, and of several about one thing only the newest is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Conflict, GPUStackError, NotFound, Throttled, Unauthenticated, Unavailable
from gpustack.kit.tasks import Tasks

log = logging.getLogger(__name__)

R = TypeVar("R")

#: Trouble of the moment: also a credential that is about to be replaced.
_LATER = (Unavailable, Throttled, Unauthenticated)


class Outbox(Generic[R]):
    """Sends reports by key with ``send``, again after passing trouble.

    ``merge(old, new)`` joins a report that was not sent yet with a newer one. A report that the server refuses
    is logged and dropped; ``on_refused`` may put another one.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[int, R], Awaitable[object]],
        *,
        merge: Callable[[R, R], R] = lambda _old, new: new,
        first: float = 0.5,
        limit: float = 10.0,
    ) -> None:
        self._name = name
        self._send = send
        self._merge = merge
        #: Called with the key when the server no longer knows the thing.
        self.on_gone: Callable[[int], None] = lambda _key: None
        #: Called with the key when the server refuses a report because it sees the thing otherwise.
        self.on_refused: Callable[[int], None] = lambda _key: None
        self._waits = (first, limit)
        self._waiting: dict[int, R] = {}
        self._under_way: dict[int, R] = {}
        self._sending: set[int] = set()
        self._tasks = Tasks(name)

    def put(self, key: int, report: R) -> None:
        """Send ``report`` as soon as possible."""
        old = self._waiting.get(key)
        self._waiting[key] = report if old is None else self._merge(old, report)
        if key not in self._sending:
            self._sending.add(key)
            self._tasks.start(str(key), self._deliver(key))

    def pending(self, key: int) -> bool:
        """Tell whether something about ``key`` has not reached the server yet."""
        return key in self._sending

    def forget(self, key: int) -> None:
        """Drop what waits about ``key``, and do not send again what is under way."""
        self._waiting.pop(key, None)
        self._under_way.pop(key, None)

    async def stop(self) -> None:
        """End without sending the rest."""
        await self._tasks.stop()

    async def _deliver(self, key: int) -> None:
        first, limit = self._waits
        backoff = Backoff(first=first, limit=limit)
        try:
            while key in self._waiting:
                if await self._attempt(key):
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.next())
        finally:
            self._sending.discard(key)

    async def _attempt(self, key: int) -> bool:
        """Send the newest report; False when it has to be sent again."""
        report = self._under_way[key] = self._waiting.pop(key)
        try:
            await self._send(key, report)
        except _LATER as error:
            log.debug("%s %s: not reported yet: %s", self._name, key, error)
            if self._under_way.get(key) is report:
                newer = self._waiting.get(key)
                self._waiting[key] = report if newer is None else self._merge(report, newer)
            return False
        except NotFound:
            self.forget(key)
            self.on_gone(key)
        except Conflict as error:
            log.info("%s %s: the server refuses the report: %s", self._name, key, error)
            self.on_refused(key)
        except GPUStackError as error:
            log.warning("%s %s: the server refuses the report: %s", self._name, key, error)
        finally:
            self._under_way.pop(key, None)
        return True
