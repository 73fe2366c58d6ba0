"""What happened to instances is written with the change itself, and stays when they are gone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from gpustack.db import Store
from gpustack.db.repositories import history
from gpustack.db.repositories.base import sql
from gpustack.schemas import EventType, InstanceEventPublic, InstanceState, ModelPublic
from support.records import a_model_wanted, a_registration

S = InstanceState


async def told(store: Store, **filters: Any) -> list[tuple[str, str]]:
    """Return what happened, oldest first, with the first line of why."""
    events: list[InstanceEventPublic] = (await store.history.newest(1000, **filters)).items
    return [(each.what, each.message.split("\n")[0]) for each in events]


@pytest.fixture
async def model(store: Store) -> ModelPublic:
    return await store.models.create(a_model_wanted("tiny"), 1)


async def test_a_life_is_told_from_its_beginning_to_its_end(store: Store, model: ModelPublic) -> None:
    worker = await store.workers.register(a_registration("box"), "digest", 1)
    instance = await store.instances.create(model, "tiny-1")
    await store.instances.update(instance.id, state=S.SCHEDULED, worker_id=worker.id, state_message="")
    await store.instances.update(instance.id, state=S.RUNNING)
    last_words = "the engine was killed; trying again now\nlast lines of its log:\nboom"
    await store.instances.update(instance.id, state=S.ERROR, state_message=last_words)
    await store.instances.update(
        instance.id, state=S.INITIALIZING, state_message="restart 1", restart_count=1
    )
    await store.instances.update(instance.id, draining_since=datetime.now(UTC))
    await store.instances.delete(instance.id)

    assert await told(store) == [
        ("created", ""),
        ("scheduled", ""),
        ("running", ""),
        ("error", "the engine was killed; trying again now"),
        ("restarted", "the engine was killed; trying again now"),
        ("initializing", "restart 1"),
        ("draining", "restart 1"),
        ("removed", ""),
    ]
    newest = (await store.history.list()).items[0]
    assert (newest.what, newest.worker_name, newest.restart_count) == ("removed", "box", 1)
    assert (await store.history.list(search="tiny-1", page=-1)).items[3].message == last_words


async def test_messages_within_a_state_are_not_kept(store: Store, model: ModelPublic) -> None:
    instance = await store.instances.create(model, "tiny-1")
    for percent in range(5):
        await store.instances.update(
            instance.id, state=S.DOWNLOADING, state_message=f"{percent} %", download_progress=percent
        )
    assert await told(store) == [("created", ""), ("downloading", "0 %")]


async def test_what_was_undone_did_not_happen(store: Store, model: ModelPublic) -> None:
    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.instances.create(model, "tiny-1")
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await fail()
    assert await told(store) == []


async def test_events_of_a_removed_model_stay_readable_by_its_name(store: Store, model: ModelPublic) -> None:
    other = await store.models.create(a_model_wanted("other"), 1)
    first = await store.instances.create(model, "tiny-1")
    await store.instances.create(other, "other-1")
    await store.instances.delete(first.id)
    await store.models.delete(model.id)

    for wanted in ({"model_name": "tiny"}, {"model_id": model.id}, {"instance_id": first.id}):
        assert await told(store, **wanted) == [("created", ""), ("removed", "")]
    page = await store.history.list(page=2, per_page=1)
    assert page.pagination.total >= 3


async def test_many_changes_of_one_transaction_are_one_statement(
    store: Store, model: ModelPublic, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    fetch = asyncpg.Connection.fetch

    async def counting(self: asyncpg.Connection, query: str, *args: object, **more: object) -> object:
        statements.append(query)
        return await fetch(self, query, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetch", counting)
        async with store.transaction() as tx:
            for number in range(50):
                await tx.instances.create(model, f"tiny-{number}")
    assert sum("instance_events" in each for each in statements) == 1
    assert len(await told(store)) == 50


async def test_more_than_one_statement_holds_is_kept_whole(store: Store, model: ModelPublic) -> None:
    instance = await store.instances.create(model, "tiny-1")
    async with store.transaction() as tx:
        tx.remember(history.happenings(None, instance) * 4500)
    assert (await store.history.list(per_page=1)).pagination.total == 4501


async def test_who_follows_is_told_at_once_and_in_order(store: Store, model: ModelPublic) -> None:
    async with store.feed() as feed:
        subscription = feed.subscribe({history.History.topic})
        instance = await store.instances.create(model, "tiny-1")
        await store.instances.update(instance.id, state=S.SCHEDULED)
        async with asyncio.timeout(20):
            first, second = await anext(subscription), await anext(subscription)
    assert (first.type, first.data["what"], second.data["what"]) == (
        EventType.CREATED,
        "created",
        "scheduled",
    )
    assert InstanceEventPublic.model_validate(second.data) == (await store.history.get(second.id))


async def test_a_long_message_keeps_its_beginning_and_its_end(store: Store, model: ModelPublic) -> None:
    instance = await store.instances.create(model, "tiny-1")
    await store.instances.update(
        instance.id, state=S.ERROR, state_message="why" + "x" * 20_000 + "last words"
    )
    message = (await store.history.list()).items[0].message
    assert message.startswith("why")
    assert message.endswith("last words")
    assert len(message) < 5000


async def test_old_ones_and_too_many_are_deleted(store: Store, model: ModelPublic) -> None:
    instance = await store.instances.create(model, "tiny-1")
    for state in (S.SCHEDULED, S.INITIALIZING, S.STARTING, S.RUNNING):
        await store.instances.update(instance.id, state=state)
    events = (await store.history.newest(10)).items
    long_ago = datetime.now(UTC) - timedelta(days=31)
    await store.history._session.fetch(
        sql("UPDATE instance_events SET created_at = {} WHERE id <= {}", long_ago, events[1].id)
    )

    assert await history.prune(store.history._session) == 2
    assert await history.prune(store.history._session) == 0
    assert await history.prune(store.history._session, keep=2) == 1
    assert [what for what, _ in await told(store)] == ["starting", "running"]
    assert await history.prune(store.history._session, older_than=timedelta()) == 2
    assert await told(store) == []


async def test_all_but_a_few_of_very_many_are_deleted(store: Store, model: ModelPublic) -> None:
    instance = await store.instances.create(model, "tiny-1")
    for _ in range(2):
        async with store.transaction() as tx:
            tx.remember(history.happenings(None, instance) * 6000)
    assert await history.prune(store.history._session, keep=3) == 11_998
    assert (await store.history.list(per_page=1)).pagination.total == 3
