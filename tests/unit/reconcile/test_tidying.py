"""Moves that would make room, from rows to a proposal in names."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from gpustack.kit.text import GIB
from gpustack.plugin import EstimateRequest, ResourceClaim
from gpustack.schemas import Defragmentation, InstanceState, source_key
from gpustack.server.reconcile import Reconciler
from support.reconcile import (
    FACTS,
    NOW,
    MemoryStore,
    Obedient,
    a_file,
    a_model,
    a_worker,
    an_instance,
    running,
)

S = InstanceState


class ByWeight(Obedient):
    """Claims as much memory as the files are large."""

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        return ResourceClaim(ram=request.model.weight_bytes)


def a_fleet(*sizes: int, workers: int = 2, **models: Any) -> MemoryStore:
    """Two workers of 24 GiB; model N takes ``sizes[N - 1]`` GiB, and its files are everywhere."""
    store = MemoryStore()
    for number in range(1, workers + 1):
        store.workers.put(a_worker(number))
    for number, size in enumerate(sizes, 1):
        model = a_model(number, local_path=f"/models/{number}.gguf", **models)
        store.models.put(model)
        facts = FACTS.model_copy(update={"path": model.local_path, "weight_bytes": size * GIB})
        for worker in range(1, workers + 1):
            file = {
                "id": number * 10 + worker,
                "local_path": model.local_path,
                "source_key": source_key(model),
            }
            store.model_files.put(a_file(worker, facts=facts, **file))
    return store


def runs(store: MemoryStore, number: int, worker: int, ram: int, **more: Any) -> None:
    digest = store.models.all[number].spec_digest
    store.instances.put(running(number, worker, ram, model_id=number, spec_digest=digest, **more))


async def proposed(store: MemoryStore) -> Defragmentation:
    backend = ByWeight()
    async with Reconciler(store, store, {"obedient": (backend, "a-plugin")}) as reconciler:  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            while len(reconciler.state.instances) < len(store.instances.all):
                await asyncio.sleep(0.005)
        rows = {topic: dict(each) for topic, each in store.rows.items()}
        found = await reconciler.propose()
        assert store.rows["model-instances"].keys() == rows["model-instances"].keys(), "nothing is moved"
    return found


async def test_one_that_waits_gets_room_by_a_move_that_is_told_in_names() -> None:
    store = a_fleet(10, 10, 20)
    runs(store, 1, 1, 10)
    runs(store, 2, 2, 10)
    digest = store.models.all[3].spec_digest
    store.instances.put(an_instance(3, S.ANALYZING, model_id=3, spec_digest=digest, model_name="tiny-3"))
    found = await proposed(store)
    (step,) = found.steps
    assert (step.from_worker, step.to_worker, step.to_gpus) == ("worker-1", "worker-2", [])
    assert step.instance_name == "tiny-00001"
    (room,) = found.placed
    assert (room.instance_id, room.model_name, room.worker_name) == (3, "tiny-3", "worker-1")


async def test_the_model_of_higher_priority_gets_it() -> None:
    store = a_fleet(10, 10, 20, 20)
    for number in (1, 2, 4):  # those that run as well, or they would have to leave
        store.models.put(store.models.all[number].model_copy(update={"priority": 5}))
    runs(store, 1, 1, 10)
    runs(store, 2, 2, 10)
    for number in (3, 4):
        digest = store.models.all[number].spec_digest
        store.instances.put(an_instance(number, S.ANALYZING, model_id=number, spec_digest=digest))
    found = await proposed(store)
    assert [each.instance_id for each in found.placed] == [4]


async def test_what_drains_or_is_out_of_date_is_not_moved() -> None:
    for more in ({"draining_since": NOW - timedelta(seconds=1)}, {"spec_digest": "another"}):
        store = a_fleet(10, 10, 20)
        runs(store, 2, 2, 10)
        digest = store.models.all[1].spec_digest
        store.instances.put(running(1, 1, 10, **{"model_id": 1, "spec_digest": digest, **more}))
        store.instances.put(
            an_instance(3, S.ANALYZING, model_id=3, spec_digest=store.models.all[3].spec_digest)
        )
        found = await proposed(store)
        assert {each.instance_id for each in found.steps} <= {2}


async def test_where_all_is_well_nothing_is_proposed() -> None:
    store = a_fleet(10)
    runs(store, 1, 1, 10)
    assert await proposed(store) == Defragmentation()
