"""Signs of life of all workers, written together once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
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
        #: Told to the listeners, and kept for a database that was away.
        self._unwritten: dict[int, Heartbeat] = {}
        #: When the last of each arrived, by the clock of this machine.
        self._arrivals: dict[int, datetime] = {}
        self._arrived = asyncio.Event()
        #: Also told of each batch; heartbeats make no events.
        self.listeners: list[Callable[[Mapping[int, Heartbeat]], None]] = []

    def add(self, worker_id: int, heartbeat: Heartbeat) -> None:
        """Take note of a sign of life; it is in the database about a second later."""
        self._waiting[worker_id] = _merged(self._waiting.get(worker_id), heartbeat)
        self._arrivals[worker_id] = datetime.now(UTC)
        self._arrived.set()

    async def run(self) -> NoReturn:
        """Write what has arrived, at most once in ``every`` seconds."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._every)
            await self.flush()

    async def flush(self) -> None:
        """Tell of what is waiting and write it; what cannot be written goes with the next heartbeats."""
        self._arrived.clear()
        batch, self._waiting = self._waiting, {}
        for listener in self.listeners:
            listener(batch)
        earlier, self._unwritten = self._unwritten, {}
        batch = earlier | {worker: _merged(earlier.get(worker), beat) for worker, beat in batch.items()}
        arrivals = {worker: self._arrivals[worker] for worker in batch}
        try:
            if self._store.away:
                # Whoever listens is not to wait with us.
                self._unwritten = batch
            elif batch:
                await self._store.workers.heartbeat_many(batch, arrivals)
                for worker in batch.keys() - self._waiting.keys():
                    del self._arrivals[worker]
        except GPUStackError as error:
            self._unwritten = batch
            log.warning("heartbeats of %d workers are not written yet: %s", len(batch), error)


def _merged(earlier: Heartbeat | None, later: Heartbeat) -> Heartbeat:
    if earlier is None:
        return later
    return Heartbeat(
        status=later.status or earlier.status,
        # An empty one says that nothing is installed any more.
        installed_versions=(
            earlier.installed_versions if later.installed_versions is None else later.installed_versions
        ),
        kv_caches=earlier.kv_caches if later.kv_caches is None else later.kv_caches,
    )
