"""Reconcile on a real PostgreSQL, with workers that register, watch and report as real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from gpustack.db import Feed, Store
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Conflict, NotFound
from gpustack.kit.text import GIB
from gpustack.lifecycle.instance import Deadlines
from gpustack.plugin import ResourceClaim
from gpustack.schemas import (
    GpuMemory,
    GpuStatus,
    Heartbeat,
    InstanceState,
    MemoryStatus,
    ModelCreate,
    ModelFileReport,
    ModelFileState,
    ModelPatch,
    ModelUpdate,
    WorkerPublic,
    WorkerRegistration,
    WorkerState,
    WorkerStatus,
)
from gpustack.schemas.gpu_selection import GpuSelector
from gpustack.server.reconcile import Limits, Reconciler
from support.reconcile import FACTS, PATH, Obedient

S = InstanceState
_CARD = GpuMemory(total=8 * GIB)
_CLAIM = ResourceClaim(ram=4 * GIB)


class FakeWorker:
    """Registers, beats, reads files and runs instances: at once and without an engine."""

    def __init__(
        self,
        store: Store,
        feed: Feed,
        name: str,
        *,
        ram: int = 24,
        files: Iterable[str] = (PATH,),
        gpus: int = 0,
    ) -> None:
        self._store, self._feed = store, feed
        self._name = name
        devices = [
            GpuStatus(index=each, uuid=f"{name}-{each}", vendor="acme", name="A", type="cuda", memory=_CARD)
            for each in range(gpus)
        ]
        self._status = WorkerStatus(memory=MemoryStatus(total=ram * GIB), gpu_devices=devices)
        self._files = set(files)
        self.row: WorkerPublic
        self.drains_for = 0.0
        self.hears: Callable[[int, Heartbeat], None] = lambda _id, _beat: None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[FakeWorker]:
        cluster = await self._store.clusters.default()
        wanted = WorkerRegistration(
            name=self._name,
            ip="10.0.0.1",
            door_token="d" * 16,
            worker_uuid=f"uuid-of-{self._name}",
            version="1",
            status=self._status,
            catalogue={"backends": ["obedient"]},
        )
        self.row = await self._store.workers.register(wanted, f"token-of-{self._name}", cluster.id)
        tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._watch())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise ended

    async def _beat(self) -> None:
        while True:
            self.hears(self.row.id, Heartbeat())
            await self._store.workers.heartbeat_many({self.row.id: Heartbeat()})
            await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        since = await self._store.events.last_number()
        async with self._feed.subscribe({"model-instances", "model-files"}, since=since) as events:
            for instance in (await self._store.instances.list(page=-1, worker_id=self.row.id)).items:
                await self._run(instance.id, instance.state)
            async for event in events:
                if event.data.get("worker_id") != self.row.id:
                    continue
                if event.topic == "model-files":
                    await self._read(event.id, event.data)
                elif event.data.get("draining_since"):
                    await self._end(event.id)
                else:
                    await self._run(event.id, InstanceState(event.data["state"]))

    async def _read(self, number: int, data: dict[str, Any]) -> None:
        if data["state"] != ModelFileState.ANALYZING:
            return
        path = data["local_path"]
        answer = (
            {"state": ModelFileState.READY, "facts": FACTS.model_copy(update={"path": path})}
            if path in self._files
            else {"state": ModelFileState.ERROR, "state_message": f"no such file: {path}"}
        )
        await self._store.model_files.report(number, ModelFileReport(request=data["request"], **answer))

    async def _end(self, number: int) -> None:
        """End a draining instance, as the report of its worker would."""
        await asyncio.sleep(self.drains_for)
        with contextlib.suppress(NotFound):
            await self._store.instances.delete(number)

    async def _run(self, number: int, state: InstanceState) -> None:
        try:
            if state is S.SCHEDULED:
                for following in (S.INITIALIZING, S.STARTING, S.RUNNING):
                    await self._store.instances.update(number, state=following)
            elif state is S.UNREACHABLE:
                await self._store.instances.update(number, expect_state=state, state=S.RUNNING)
        except (NotFound, Conflict):
            return  # deleted or moved meanwhile


@asynccontextmanager
async def reconciling(
    store: Store,
    feed: Feed,
    workers: Iterable[FakeWorker] = (),
    claim: ResourceClaim = _CLAIM,
    **limits: Any,
) -> AsyncIterator[Reconciler]:
    backends = {"obedient": (Obedient(claim), "obedient-plugin")}
    wanted = replace(Limits(deadlines=Deadlines(), patience=0.2, grace=1.0), **limits)
    async with Reconciler(
        store, feed, backends, limits=wanted, backoff=Backoff(first=0.05, limit=0.2)
    ) as reconciler:
        for each in workers:
            each.hears = lambda worker_id, beat: reconciler.heard({worker_id: beat})
        yield reconciler


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
    return found


async def rows(store: Store) -> list[Any]:
    return (await store.instances.list(page=-1, sort_by="id")).items


def all_in(store: Store, *states: InstanceState) -> Callable[[], Any]:
    async def condition() -> bool:
        return [each.state for each in await rows(store)] == list(states)

    return condition


async def deploy(store: Store, name: str = "tiny", *, path: str = PATH, **more: Any) -> Any:
    cluster = await store.clusters.default()
    return await store.models.create(ModelCreate(name=name, local_path=path, **more), cluster.id)


async def test_a_model_runs_is_counted_and_goes(store: Store) -> None:
    async with (
        store.feed() as feed,
        FakeWorker(store, feed, "box").working() as worker,
        reconciling(store, feed),
    ):
        model = await deploy(store, replicas=2)
        await until(all_in(store, S.RUNNING, S.RUNNING))

        async def counted() -> bool:
            found = await store.models.get(model.id)
            return (found.ready_replicas, found.categories) == (2, ["llm"])

        await until(counted)
        first = (await rows(store))[0]
        assert (first.worker_id, first.worker_name, first.backend) == (worker.row.id, "box", "obedient")
        assert first.computed_resource_claim.ram == 4 * GIB
        assert first.resolved_path == PATH

        await store.models.delete(model.id)
        await until(all_in(store))


async def test_what_waits_for_room_gets_it_at_once(store: Store) -> None:
    async with (
        store.feed() as feed,
        FakeWorker(store, feed, "box", ram=6).working(),
        reconciling(store, feed),
    ):
        model = await deploy(store)
        await until(all_in(store, S.RUNNING))
        await deploy(store, "second")
        await until(all_in(store, S.RUNNING, S.PENDING))

        async def explained() -> bool:
            return "box: needs 4.0 GiB RAM" in (await rows(store))[1].state_message

        await until(explained)
        began = time.monotonic()
        await store.models.delete(model.id)
        await until(all_in(store, S.RUNNING))
        assert time.monotonic() - began < 2.0


async def test_only_the_worker_with_the_files_is_taken(store: Store) -> None:
    async with store.feed() as feed:
        without = FakeWorker(store, feed, "without", files=())
        async with without.working(), reconciling(store, feed):
            await deploy(store)
            await until(all_in(store, S.ERROR))
            assert f"without: no such file: {PATH}" in (await rows(store))[0].state_message

            async with FakeWorker(store, feed, "with").working() as worker:
                await until(all_in(store, S.RUNNING))
                assert (await rows(store))[0].worker_id == worker.row.id


async def test_a_changed_model_is_replaced(store: Store) -> None:
    async with store.feed() as feed:
        worker = FakeWorker(store, feed, "box", files=(PATH, "/models/new.gguf"))
        async with worker.working(), reconciling(store, feed):
            model = await deploy(store, replicas=2)
            await until(all_in(store, S.RUNNING, S.RUNNING))
            await store.models.update(model.id, ModelUpdate(local_path="/models/new.gguf", replicas=2))

            async def replaced() -> bool:
                found = await rows(store)
                return [(each.resolved_path, each.state) for each in found] == [
                    ("/models/new.gguf", S.RUNNING)
                ] * 2

            await until(replaced)


async def test_copies_keep_to_the_gpus_that_were_chosen_and_follow_another_choice(store: Store) -> None:
    claim = ResourceClaim(ram=GIB, vram=2 * GIB, gpus=1)
    async with store.feed() as feed, reconciling(store, feed, claim=claim):
        async with (
            FakeWorker(store, feed, "box", gpus=4).working(),
            FakeWorker(store, feed, "other", gpus=4).working(),
        ):
            chosen = GpuSelector(gpu_ids=["box:cuda:1", "other:cuda:3"], gpus_per_replica=1)
            model = await deploy(store, replicas=2, gpu_selector=chosen)
            await until(all_in(store, S.RUNNING, S.RUNNING))
            assert await taken(store) == [("box", 1), ("other", 3)]

            await store.models.patch(
                model.id,
                ModelPatch.model_validate({"gpu_selector": {"gpu_ids": ["box:cuda:0", "box:cuda:2"]}}),
            )

            async def moved() -> bool:
                return await taken(store) == [("box", 0), ("box", 2)]

            await until(moved)


async def test_a_chosen_gpu_is_waited_for_until_its_worker_joins(store: Store) -> None:
    claim = ResourceClaim(ram=GIB, vram=2 * GIB, gpus=1)
    async with (
        store.feed() as feed,
        reconciling(store, feed, claim=claim),
        FakeWorker(store, feed, "box", gpus=2).working(),
    ):
        await deploy(store, gpu_selector=GpuSelector(gpu_ids=["late:cuda:1"]))

        async def explained() -> bool:
            return (await rows(store))[:1] != [] and (await rows(store))[0].state_message.startswith(
                "the chosen GPU late:cuda:1 is on a worker that has not joined"
            )

        await until(explained)
        async with FakeWorker(store, feed, "late", gpus=2).working():
            await until(all_in(store, S.RUNNING))
            assert await taken(store) == [("late", 1)]


async def taken(store: Store) -> list[tuple[str, int]]:
    """Return the worker and GPU of each running instance that is not on its way out."""
    return sorted(
        (each.worker_name, index)
        for each in await rows(store)
        if each.state is S.RUNNING and each.draining_since is None
        for index in each.computed_resource_claim.vram
    )


async def test_a_worker_that_falls_silent_is_lost_and_found_with_its_instances(store: Store) -> None:
    async with store.feed() as feed:
        worker = FakeWorker(store, feed, "box")
        async with reconciling(store, feed, [worker], heartbeat_loss=0.5):
            async with worker.working():
                await deploy(store)
                await until(all_in(store, S.RUNNING))
            await until(all_in(store, S.UNREACHABLE))
            assert (await store.workers.get(worker.row.id)).state is WorkerState.UNREACHABLE
            first = (await rows(store))[0]

            async with worker.working():
                await until(all_in(store, S.RUNNING))
                assert (await rows(store))[0].id == first.id


async def test_signs_of_life_that_another_process_received_count(store: Store) -> None:
    async with store.feed() as feed:
        worker = FakeWorker(store, feed, "box")
        async with worker.working(), reconciling(store, feed, heartbeat_loss=1.5):
            await deploy(store)
            await until(all_in(store, S.RUNNING))
            await asyncio.sleep(3)
            assert (await store.workers.get(worker.row.id)).state is WorkerState.READY


async def test_a_new_start_of_the_server_goes_on_where_the_last_one_was(store: Store) -> None:
    async with store.feed() as feed, FakeWorker(store, feed, "box").working():
        async with reconciling(store, feed):
            model = await deploy(store)
            await until(all_in(store, S.RUNNING))
        await store.models.update(model.id, ModelUpdate(local_path=PATH, replicas=3))
        await asyncio.sleep(0.1)
        assert len(await rows(store)) == 1

        async with reconciling(store, feed):
            await until(all_in(store, S.RUNNING, S.RUNNING, S.RUNNING))


async def test_while_nothing_happens_it_sleeps(store: Store) -> None:
    async with store.feed() as feed, FakeWorker(store, feed, "box").working():
        async with reconciling(store, feed):
            await deploy(store)
            await until(all_in(store, S.RUNNING))
            await asyncio.sleep(0.3)
        number = await store.events.last_number()
        count = 0
        async with reconciling(store, feed) as reconciler:
            settle = reconciler._settle

            async def counted() -> None:
                nonlocal count
                count += 1
                await settle()

            reconciler._settle = counted  # type: ignore[method-assign]
            await asyncio.sleep(0.5)

        assert count == 1
        assert await store.events.last_number() == number


async def test_many_models_at_once(store: Store) -> None:
    async with (
        store.feed() as feed,
        FakeWorker(store, feed, "box", ram=400).working(),
        reconciling(store, feed),
    ):
        for number in range(30):
            await deploy(store, f"model-{number}")
        await until(all_in(store, *[S.RUNNING] * 30), seconds=30.0)
