"""A server that decides on a real database, with workers that do as they are told at once, and no engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gpustack.db import Feed, Store
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Conflict, NotFound
from gpustack.kit.text import GIB
from gpustack.plugin import EstimateRequest, ResourceClaim, Suggestion
from gpustack.schemas import (
    GpuMemory,
    GpuStatus,
    Heartbeat,
    InstanceState,
    MemoryStatus,
    ModelCreate,
    ModelFileReport,
    ModelFileState,
    ModelPublic,
    WorkerPublic,
    WorkerRegistration,
    WorkerStatus,
)
from gpustack.server.decisions import DecisionLog
from gpustack.server.explaining import Explainer
from gpustack.server.reconcile import Limits, Reconciler
from support.reconcile import FACTS, PATH, Obedient

S = InstanceState
_STEPS = (S.INITIALIZING, S.STARTING, S.RUNNING)


class Sized(Obedient):
    """Claims what the parameter ``--gib=N`` says, on one GPU where there are some; suggests half and a quarter."""

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        size = _size(request.parameters) * GIB
        if request.devices:
            return ResourceClaim(ram=GIB, vram=size, gpus=1)
        return ResourceClaim(ram=size)

    def suggestions(self, request: EstimateRequest) -> Sequence[Sequence[Suggestion]]:
        size = _size(request.parameters)
        return [
            [
                Suggestion(what=f"a context of {each} GiB", parameters=(f"--gib={each}",))
                for each in (size // 2, size // 4)
            ]
        ]


def _size(parameters: Sequence[str]) -> int:
    return int(next((each[6:] for each in parameters if each.startswith("--gib=")), "4"))


@dataclass
class House:
    """What :func:`deciding` runs."""

    store: Store
    feed: Feed
    reconciler: Reconciler
    log: DecisionLog
    explainer: Explainer

    async def worker(
        self, name: str, *, ram: int = 24, gpus: Sequence[int] = (), **more: Any
    ) -> WorkerPublic:
        """Register a worker with ``ram`` GiB and GPUs of so many GiB."""
        cluster = await self.store.clusters.default()
        status = WorkerStatus(
            memory=MemoryStatus(total=ram * GIB),
            gpu_devices=[
                GpuStatus(
                    uuid=f"{name}-{index}",
                    index=index,
                    vendor="fake",
                    name="Fake",
                    type="cuda",
                    memory=GpuMemory(total=size * GIB),
                )
                for index, size in enumerate(gpus)
            ],
        )
        wanted = WorkerRegistration(
            name=name,
            ip="10.0.0.1",
            door_token="d" * 16,
            worker_uuid=f"uuid-of-{name}",
            version="1",
            status=status,
            catalogue={"backends": ["obedient"]},
            **more,
        )
        return await self.store.workers.register(wanted, f"token-of-{name}", cluster.id)

    async def model(self, name: str, *, replicas: int = 1, gib: int = 4, **more: Any) -> ModelPublic:
        """Deploy a model that takes ``gib`` GiB."""
        cluster = await self.store.clusters.default()
        wanted = ModelCreate(
            name=name, local_path=PATH, replicas=replicas, backend_parameters=[f"--gib={gib}"], **more
        )
        return await self.store.models.create(wanted, cluster.id)

    async def settled(self, seconds: float = 20.0) -> dict[str, str]:
        """Wait until every instance runs or was refused; return the state by instance, and the message of what waits."""
        async with asyncio.timeout(seconds):
            while True:
                models = (await self.store.models.list(page=-1)).items
                found = (await self.store.instances.list(page=-1)).items
                wanted = sum(each.replicas for each in models)
                calm = all(
                    each.state is S.RUNNING or (each.state in (S.PENDING, S.ERROR) and each.state_message)
                    for each in found
                )
                if len(found) == wanted and calm and not any(each.draining_since for each in found):
                    return {each.name: each.state for each in found}
                await asyncio.sleep(0.02)


@asynccontextmanager
async def deciding(url: str, limits: Mapping[str, Any] | None = None) -> AsyncIterator[House]:
    """Run the part of a server that decides and records, with workers that obey."""
    async with await Store.open(url) as store, store.feed() as feed:
        backends = {"obedient": (Sized(), "obedient-plugin")}
        reconciler = Reconciler(
            store,
            feed,
            backends,
            limits=Limits(**{"patience": 0.2, **(limits or {})}),
            backoff=Backoff(first=0.05, limit=0.2),
        )
        explainer = Explainer(store, backends)
        async with DecisionLog(store, reconciler.state.fleet, every=0.05) as log, reconciler:
            explainer.log = log
            obeying = asyncio.create_task(_obey(store, feed, reconciler))
            try:
                yield House(store, feed, reconciler, log, explainer)
            finally:
                obeying.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await obeying


async def _obey(store: Store, feed: Feed, reconciler: Reconciler) -> None:
    since = await store.events.last_number()
    async with feed.subscribe({"model-instances", "model-files", "workers"}, since=since) as events:
        async for event in events:
            with contextlib.suppress(NotFound, Conflict):  # deleted or moved meanwhile
                await _do(store, reconciler, event)


async def _do(store: Store, reconciler: Reconciler, event: Any) -> None:
    data = event.data
    if event.topic == "workers":
        reconciler.heard({event.id: Heartbeat()})
    elif event.topic == "model-files" and data.get("state") == ModelFileState.ANALYZING:
        facts = FACTS.model_copy(update={"path": data["local_path"]})
        await store.model_files.report(
            event.id, ModelFileReport(request=data["request"], state=ModelFileState.READY, facts=facts)
        )
    elif event.topic == "model-instances" and data.get("draining_since"):
        await store.instances.delete(event.id)
    elif event.topic == "model-instances" and data.get("state") == S.SCHEDULED:
        for following in _STEPS:
            await store.instances.update(event.id, state=following)
