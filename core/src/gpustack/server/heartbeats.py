"""Signs of life of all workers, written together once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NoReturn

from gpustack.db import Store
from gpustack.kit.errors import GPUStackError
from gpustack.schemas import Heartbeat

log = logging.getLogger(__name__)


class Heartbeats:
    """Collects heartbeats; :meth:`run` writes them. Of two from one worker the later counts, field by field."""

    def __init__(self, store: Store, *, every: float = 1.0) -> None:
        self._store = store
        self._every = every
        self._waiting: dict[int, Heartbeat] = {}
        self._arrived = asyncio.Event()
        #: Also told of each batch; heartbeats make no events.
        self.listeners: list[Callable[[Mapping[int, Heartbeat]], None]] = []

    def add(self, worker_id: int, heartbeat: Heartbeat) -> None:
        """Take note of a sign of life; it is in the database about a second later."""
        if (earlier := self._waiting.get(worker_id)) is not None:
            heartbeat = Heartbeat(
                status=heartbeat.status or earlier.status,
                installed_versions=heartbeat.installed_versions or earlier.installed_versions,
            )
        self._waiting[worker_id] = heartbeat
        self._arrived.set()

    async def run(self) -> NoReturn:
        """Write what has arrived, at most once in ``every`` seconds."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._every)
            await self.flush()

    async def flush(self) -> None:
        """Write what is waiting. While the database is away, workers' next heartbeats replace what was lost."""
        self._arrived.clear()
        batch, self._waiting = self._waiting, {}
        for listener in self.listeners:
            listener(batch)
        try:
            if batch:
                await self._store.workers.heartbeat_many(batch)
        except GPUStackError as error:
            log.warning("heartbeats of %d workers were not written: %s", len(batch), error)
