"""The reconciler on a store in memory, with what workers would do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from gpustack.kit.backoff import Backoff
from gpustack.lifecycle.instance import Deadlines
from gpustack.schemas import ModelFileReport, ModelFileState
from gpustack.server.reconcile import Limits, Reconciler
from support.reconcile import FACTS, MemoryStore, Obedient

FAST = Limits(deadlines=Deadlines(), patience=0.1, grace=0.0, heartbeat_loss=60.0)


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


@asynccontextmanager
async def reconciling(
    store: MemoryStore, backend: Obedient | None = None, limits: Limits = FAST
) -> AsyncIterator[Reconciler]:
    backends = {"obedient": (backend or Obedient(), "obedient-plugin")}
    backoff = Backoff(first=0.02, limit=0.05)
    async with Reconciler(store, store, backends, limits=limits, backoff=backoff) as reconciler:  # type: ignore[arg-type]
        yield reconciler


@asynccontextmanager
async def reading(
    store: MemoryStore, answer: dict[str, Any] | None = None, *, drain: float = 0.0
) -> AsyncIterator[None]:
    """Answer requests for files as a worker would, and end what drains after ``drain`` seconds."""

    async def work() -> None:
        while True:
            for file in list(store.model_files.all.values()):
                if file.state is ModelFileState.ANALYZING:
                    found = answer or {"state": ModelFileState.READY, "facts": FACTS}
                    await store.model_files.report(file.id, ModelFileReport(request=file.request, **found))
            for each in list(store.instances.all.values()):
                since = each.draining_since
                if since is not None and (datetime.now(UTC) - since).total_seconds() >= drain:
                    await store.instances.delete(each.id)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
