"""The shell: from a model to a placed instance and back, over a store in memory."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from gpustack.kit.text import GIB
from gpustack.lifecycle.instance import Deadlines
from gpustack.plugin import ResourceClaim, Verdict
from gpustack.schemas import Heartbeat, InstanceState, ModelFileState, WorkerState
from support.reconcile import FACTS, MemoryStore, Obedient, a_model, a_worker
from support.reconciling import FAST, reading, reconciling, until

S = InstanceState


def states(store: MemoryStore) -> list[InstanceState]:
    return [each.state for each in sorted(store.instances.all.values(), key=lambda each: each.id)]


def only(store: MemoryStore) -> Any:
    (instance,) = store.instances.all.values()
    return instance


async def test_a_model_becomes_an_instance_with_everything_its_worker_needs() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store), reading(store):
        store.models.put(a_model(categories=[]))
        await until(lambda: states(store) == [S.SCHEDULED])
        await until(lambda: store.models.all[1].categories == ["llm"])

    instance = only(store)
    assert instance.name.startswith("tiny-")
    assert (instance.worker_id, instance.worker_name, instance.worker_ip) == (1, "worker-1", "10.0.0.1")
    assert (instance.backend, instance.backend_version) == ("obedient", "1.0")
    assert instance.resolved_path == FACTS.path
    assert instance.computed_resource_claim.ram == 4 * GIB


async def test_replicas_go_up_and_down() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store), reading(store):
        store.models.put(a_model(replicas=3))
        await until(lambda: states(store) == [S.SCHEDULED] * 3)
        store.models.put(a_model(replicas=1))
        await until(lambda: states(store) == [S.SCHEDULED])

    assert only(store).id == 1


async def test_running_instances_are_counted() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store), reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.SCHEDULED])
        await store.instances.update(1, state=S.RUNNING)
        await until(lambda: store.models.all[1].ready_replicas == 1)
        await store.instances.update(1, state=S.ERROR)
        await until(lambda: store.models.all[1].ready_replicas == 0)


async def test_a_backend_is_asked_once_for_equal_questions() -> None:
    store = MemoryStore()
    backend = Obedient()
    store.workers.put(a_worker(1))
    store.workers.put(a_worker(2))
    async with reconciling(store, backend), reading(store):
        store.models.put(a_model(replicas=4))
        await until(lambda: states(store) == [S.SCHEDULED] * 4)

    assert backend.asked == 1
    assert sorted(each.worker_id for each in store.instances.all.values()) == [1, 1, 2, 2]


async def test_room_that_becomes_free_is_taken_at_once() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(ram=6))
    async with reconciling(store), reading(store):
        store.models.put(a_model(replicas=2))
        await until(
            lambda: states(store) == [S.SCHEDULED, S.PENDING] and store.instances.all[2].state_message
        )
        assert "2.0 GiB of 6.0 GiB is free (4.0 GiB claimed)" in store.instances.all[2].state_message
        written = len(store.log)
        await asyncio.sleep(0.1)
        assert len(store.log) == written, "waiting writes nothing"

        await store.instances.update(1, state=S.ERROR)
        store.models.put(a_model(replicas=1))
        await until(lambda: states(store) == [S.SCHEDULED])

    assert only(store).id == 2


async def test_a_file_that_no_worker_has_is_an_error_until_something_changes() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    missing = {"state": ModelFileState.ERROR, "state_message": "no such file: /models/tiny.gguf"}
    async with reconciling(store):
        async with reading(store, missing):
            store.models.put(a_model())
            await until(lambda: states(store) == [S.ERROR])
            assert "worker-1: no such file: /models/tiny.gguf" in only(store).state_message
            written = len(store.log)
            await asyncio.sleep(0.1)
            assert len(store.log) == written, "an error is not tried again by itself"
        async with reading(store):
            await store.instances.delete(only(store).id)
            await until(lambda: states(store) == [S.SCHEDULED])


async def test_a_backend_that_breaks_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Obedient):
        def estimate(self, request: Any) -> ResourceClaim:
            raise ZeroDivisionError("no layers")

    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, Broken()), reading(store):
        store.models.put(a_model())
        message = await until(lambda: states(store) == [S.PENDING] and only(store).state_message)

    assert "plugin obedient-plugin: estimate failed: ZeroDivisionError: no layers" in message


@pytest.mark.parametrize("claim", [ResourceClaim(ram=-1), ResourceClaim(ram=1, vram=1, gpus=3), None])
async def test_a_claim_that_makes_no_sense_is_not_believed(claim: Any) -> None:
    backend = Obedient()
    backend.claim = claim
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, backend), reading(store):
        store.models.put(a_model())
        message = await until(lambda: states(store) == [S.PENDING] and only(store).state_message)

    assert "makes no sense" in message


async def test_a_refusal_is_final_and_shown() -> None:
    backend = Obedient()
    backend.verdict = Verdict.no("reads GGUF files of version 3 only")
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, backend), reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.ERROR])

    assert "worker-1: obedient: reads GGUF files of version 3 only" in only(store).state_message


async def test_a_silent_worker_is_lost_and_returns() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, limits=replace(FAST, heartbeat_loss=0.3)) as reconciler, reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.SCHEDULED])
        await store.instances.update(1, state=S.RUNNING)
        await until(lambda: store.workers.all[1].state is WorkerState.UNREACHABLE)
        await until(lambda: states(store) == [S.UNREACHABLE])
        assert "worker worker-1 is unreachable" in only(store).state_message

        reconciler.heard({1: Heartbeat()})
        await until(lambda: store.workers.all[1].state is WorkerState.READY)


async def test_a_worker_that_keeps_speaking_is_never_lost_and_costs_no_reads() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, limits=replace(FAST, heartbeat_loss=0.1)) as reconciler:
        await until(lambda: reconciler.state.workers)
        reads = store.reads
        for _ in range(20):
            reconciler.heard({1: Heartbeat()})
            await asyncio.sleep(0.02)
        assert store.workers.all[1].state is WorkerState.READY
        assert store.reads == reads


async def test_a_deadline_wakes_it() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    limits = replace(FAST, deadlines=Deadlines(starting=0.2, load_rate=1e12))
    async with reconciling(store, limits=limits), reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.SCHEDULED])
        await store.instances.update(1, state=S.STARTING)
        await until(lambda: states(store) == [S.ERROR])

    assert "the engine did not answer within" in only(store).state_message


async def test_it_survives_the_database_and_reads_everything_again(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store), reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.SCHEDULED])
        store.down = True
        await until(lambda: "reading everything again" in caplog.text)
        store.rows["models"][1] = a_model(replicas=2)
        store.down = False
        await until(lambda: states(store) == [S.SCHEDULED] * 2)

    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_somebody_elses_write_wins() -> None:
    """The worker reports while we decide: our write is refused, and the next decision knows better."""
    store = MemoryStore()
    store.workers.put(a_worker())
    update = store.instances.update
    deleted = False

    async def meanwhile(number: int, **columns: Any) -> Any:
        nonlocal deleted
        if columns.get("state") is S.SCHEDULED and not deleted:
            deleted = True
            await store.instances.delete(number)
        return await update(number, **columns)

    store.instances.update = meanwhile  # type: ignore[method-assign]
    async with reconciling(store), reading(store):
        store.models.put(a_model())
        await until(lambda: deleted and states(store) == [S.SCHEDULED])

    assert only(store).id == 2


async def test_many_are_placed_in_one_writing() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(ram=400))
    batches: list[int] = []
    schedule = store.instances.schedule

    async def counting(wanted: Any, **more: Any) -> Any:
        batches.append(len(wanted))
        return await schedule(wanted, **more)

    store.instances.schedule = counting  # type: ignore[method-assign]
    async with reconciling(store), reading(store):
        store.models.put(a_model(replicas=50))
        await until(lambda: states(store) == [S.SCHEDULED] * 50)

    assert batches == [50]


async def test_room_that_was_given_to_one_that_is_gone_goes_to_the_next() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(ram=5))
    schedule = store.instances.schedule
    deleted: list[int] = []

    async def meanwhile(wanted: Any, **more: Any) -> Any:
        if not deleted:
            deleted.extend(wanted)
            store.models.put(a_model(replicas=1))
            await store.instances.delete(deleted[0])
        return await schedule(wanted, **more)

    store.instances.schedule = meanwhile  # type: ignore[method-assign]
    async with reconciling(store), reading(store):
        store.models.put(a_model(replicas=2))
        await until(lambda: deleted and states(store) == [S.SCHEDULED])

    assert only(store).id not in deleted


async def test_a_model_of_higher_priority_takes_the_room_of_another() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(ram=6))
    async with reconciling(store), reading(store):
        store.models.put(a_model())
        await until(lambda: states(store) == [S.SCHEDULED])
        store.models.put(a_model(2, name="urgent", priority=1))
        await until(
            lambda: (
                any(each.draining_since for each in store.instances.all.values())
                or 1 not in store.instances.all
            )
        )
        placed = await until(
            lambda: [
                each
                for each in store.instances.all.values()
                if each.state is S.SCHEDULED and each.model_id == 2
            ]
        )
        assert placed[0].worker_id == 1
        waiting = await until(
            lambda: [
                each
                for each in store.instances.all.values()
                if each.state is S.PENDING and each.state_message
            ]
        )

    assert waiting[0].model_id == 1
    assert 1 not in store.instances.all
