"""Every committed change has its event, in the order of commits, and the feed delivers each once."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest

from gpustack.db import Store
from gpustack.db import feed as feed_module
from gpustack.db.repositories.base import sql
from gpustack.kit.errors import NotFound
from gpustack.schemas import EventType, InstanceState, ModelUpdate
from support.postgres import PostgresServer
from support.records import a_model_wanted, a_registration, a_source


async def test_no_number_is_lost_under_concurrent_writers(migrated_url: str) -> None:
    async with await Store.open(migrated_url, pool=(1, 25)) as store:
        start = await store.events.last_number()
        seen: list[int] = []

        async def write(writer: int) -> None:
            for i in range(50):
                async with store.transaction() as tx:
                    await tx.models.create(a_model_wanted(f"m-{writer}-{i}", enable_model_route=False), 1)
                    await asyncio.sleep(random.random() * 0.002)

        async def follow() -> None:
            last = start
            while len(seen) < 1000:
                for event in await store.events.after(last):
                    seen.append(event.id)
                    last = event.number

        async with store.feed() as feed:
            subscription = feed.subscribe({"models"}, since=start)
            async with asyncio.timeout(60):
                await asyncio.gather(follow(), *(write(n) for n in range(20)))
                numbers = [(await anext(subscription)).number for _ in range(1000)]
        assert len(set(seen)) == 1000
        assert numbers == list(range(start + 1, start + 1001))


async def test_a_rollback_writes_no_event_and_takes_no_number(store: Store) -> None:
    before = await store.events.last_number()

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.models.create(a_model_wanted(), 1)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await fail()
    assert await store.events.last_number() == before
    await store.models.create(a_model_wanted(enable_model_route=False), 1)
    assert [e.number for e in await store.events.after(before)] == [before + 1]


async def test_an_event_carries_the_document_and_what_changed(store: Store) -> None:
    model = await store.models.create(a_model_wanted(), 1)
    before = await store.events.last_number()
    wanted = ModelUpdate(local_path=model.local_path, replicas=3)
    new = await store.models.update(model.id, wanted)
    await store.models.update(model.id, wanted)
    (event,) = await store.events.after(before)
    assert (event.topic, event.type, event.id) == ("models", EventType.UPDATED, model.id)
    assert event.data == new.model_dump(mode="json")
    assert event.changed_fields == {"replicas": [1, 3]}
    assert await store.models.get(model.id) != model


async def test_deleting_a_model_or_a_worker_tells_of_all_that_goes_with_it(store: Store) -> None:
    model = await store.models.create(a_model_wanted(), 1)
    worker = await store.workers.register(a_registration(), "digest", 1)
    file = await store.model_files.request(worker.id, a_source("/m"))
    one = await store.instances.create(model, "tiny-1")
    two = await store.instances.create(model, "tiny-2")
    await store.instances.update(two.id, worker_id=worker.id, state=InstanceState.SCHEDULED)
    before = await store.events.last_number()
    await store.workers.delete(worker.id)
    await store.models.delete(model.id)
    events = await store.events.after(before)
    remembered = [e for e in events if e.topic == "model-instance-events"]
    deleted = [e for e in events if e not in remembered]
    assert [(e.topic, e.id) for e in deleted] == [
        ("model-instances", two.id),
        ("model-files", file.id),
        ("workers", worker.id),
        ("model-instances", one.id),
        ("model-routes", 1),
        ("models", model.id),
    ]
    assert {e.type for e in deleted} == {EventType.DELETED}
    # What happened to the two is remembered, each in the transaction in which it was removed.
    assert [(e.type, e.data["instance_id"], e.data["what"]) for e in remembered] == [
        (EventType.CREATED, two.id, "removed"),
        (EventType.CREATED, one.id, "removed"),
    ]
    assert [e.topic for e in events].index("model-instance-events") == 3
    assert events[-1] is remembered[-1]
    with pytest.raises(NotFound, match=f"there is no model instance {one.id}"):
        await store.instances.get(one.id)


async def test_the_feed_goes_on_after_its_connection_is_killed(
    store: Store, postgres_server: PostgresServer
) -> None:
    async with store.feed() as feed, asyncio.timeout(20):
        subscription = feed.subscribe({"models"})
        await store.models.create(a_model_wanted("before"), 1)
        assert (await anext(subscription)).data["name"] == "before"
        await postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{store._pool._source.address.database}' AND query LIKE '%events%'"
        )
        for attempt in range(50):
            try:
                await store.ping()
                break
            except Exception:
                assert attempt < 49
        await store.models.create(a_model_wanted("meanwhile"), 1)
        assert (await anext(subscription)).data["name"] == "meanwhile"
        await store.models.create(a_model_wanted("after"), 1)
        assert (await anext(subscription)).data["name"] == "after"


async def test_a_slow_subscriber_misses_nothing_and_keeps_nothing_in_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_QUEUE", 5)
    monkeypatch.setattr(feed_module, "_BATCH", 7)
    async with store.feed() as feed, asyncio.timeout(20):
        slow = feed.subscribe({"models"})
        start = feed.position
        for i in range(40):
            await store.models.create(a_model_wanted(f"m{i}", enable_model_route=False), 1)
            assert len(slow._queue) <= 5
        numbers = [(await anext(slow)).number for _ in range(40)]
        assert numbers == list(range(start + 1, start + 41))
        await store.models.create(a_model_wanted("last"), 1)
        assert (await anext(slow)).data["name"] == "last"


async def test_subscribers_get_their_topics_from_their_number_on(store: Store) -> None:
    start = await store.events.last_number()
    model = await store.models.create(a_model_wanted(), 1)
    await store.instances.create(model, "tiny-1")
    async with store.feed() as feed, asyncio.timeout(10):
        async with (
            feed.subscribe({"model-instances"}, since=start) as past,
            feed.subscribe({"models"}) as now,
        ):
            assert (await anext(past)).topic == "model-instances"
            await store.models.set_ready(model.id, 1)
            assert (await anext(now)).changed_fields == {"ready_replicas": [0, 1]}
        assert [event async for event in past] == []


async def test_closing_the_feed_ends_its_subscriptions(store: Store) -> None:
    async with store.feed() as feed:
        subscription = feed.subscribe({"models"})
        waiting = asyncio.create_task(anext(subscription, None))
        await asyncio.sleep(0.05)
    assert await waiting is None


async def test_what_was_pruned_is_said_not_skipped(store: Store) -> None:
    start = await store.events.last_number()
    for i in range(30):
        await store.models.create(a_model_wanted(f"m{i}"), 1)
    last = await store.events.last_number()
    assert await store.events.prune(older_than=timedelta(hours=1), keep=10, batch=7) == last - 10
    assert len(await store.events.after(last - 10)) == 10
    with pytest.raises(NotFound, match="no longer kept"):
        await store.events.after(start)
    async with store.feed() as feed, asyncio.timeout(10):
        with pytest.raises(NotFound):
            await anext(feed.subscribe({"models"}, since=start))
        with pytest.raises(NotFound):
            await anext(feed.subscribe({"models"}, since=last + 1000))
    await store._pool.fetch(sql("UPDATE events SET created_at = created_at - INTERVAL '2 days'"))
    await store.events.prune(older_than=timedelta(hours=24), keep=1000)
    assert await store.events.after(last) == []
    with pytest.raises(NotFound):
        await store.events.after(last - 1)
