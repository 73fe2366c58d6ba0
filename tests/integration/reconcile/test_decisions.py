"""Decisions of a server are in its database, are made again from there, and explain where instances are."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from itertools import count

import pytest

from gpustack.db import Store
from gpustack.db.repositories.decisions import Decided, NewPage
from gpustack.kit.errors import GPUStackError
from gpustack.scheduling.records import Entry, replay
from gpustack.schemas import ModelUpdate
from gpustack.schemas.explanations import ModelExplanation, Outcome
from gpustack.server.decisions import exported, recorded, unpack
from support.churn import House, deciding


async def kept(store: Store) -> list[Entry]:
    lines = b"".join([part async for part in exported(store)]).decode().splitlines()
    return [Entry.read(line) for line in lines]


async def explained(house: House, name: str) -> ModelExplanation:
    models = (await house.store.models.list(page=-1)).items
    return await house.explainer.explain(next(each for each in models if each.name == name))


async def test_a_run_with_churn_is_decided_again_as_it_was(migrated_url: str) -> None:
    dice = random.Random(4)
    async with deciding(migrated_url) as house:
        workers = [await house.worker(f"w{number}", ram=6, gpus=(16, 16)) for number in range(3)]
        for number in range(4):
            await house.model(f"m{number}", replicas=2, gib=dice.randint(4, 12))
        await house.settled()
        for number in range(4, 8):
            models = (await house.store.models.list(page=-1)).items
            await house.store.models.delete(dice.choice(models).id)
            await house.model(f"m{number}", replicas=3, gib=dice.randint(6, 14))
            if number == 6:
                await house.store.workers.delete(workers[0].id)
                workers.append(await house.worker("w9", ram=8, gpus=(24,)))
            await house.settled()
        await house.log.flush()
        found = await kept(house.store)
    again = list(replay(found))
    assert all(each.same for each in again)
    placed = sum(each.entry.placed is not None for each in again)
    assert placed >= 15
    assert len(again) > placed, "some were refused"


async def test_a_second_run_begins_with_the_whole_fleet(migrated_url: str) -> None:
    for name in ("a", "b"):
        async with deciding(migrated_url) as house:
            await house.worker("w")
            await house.model(name, replicas=2)
            await house.settled()
    async with await Store.open(migrated_url) as store:
        assert len(await store.decisions.runs()) == 2
        found = await kept(store)
    assert sum(each.whole for each in found) == 2
    assert all(each.same for each in replay(found))


async def test_a_single_decision_is_found_with_the_fleet_of_its_time(migrated_url: str) -> None:
    async with deciding(migrated_url) as house:
        await house.worker("w", ram=24)
        first = await house.model("first", gib=10)
        await house.settled()
        await house.model("second", gib=10)
        await house.settled()
        await house.log.flush()
        spots = await house.store.decisions.last_of_model(first.id)
        (spot,) = spots.values()
        assert (await house.store.decisions.get(spot.id)) == spot
        past = await recorded(house.store, spot)
    assert past is not None
    assert past[1].request.model_name == "first"
    assert [room.holdings for room in past[0].fleet.snapshot().rooms.values()] == [()]


async def test_who_leaves_for_a_higher_priority_is_in_the_record(migrated_url: str) -> None:
    async with deciding(migrated_url) as house:
        await house.worker("w", ram=4, gpus=(20,))
        await house.model("low", gib=16)
        await house.settled()
        high = await house.model("high", gib=16, priority=10)
        while (await house.store.models.get(high.id)).ready_replicas == 0:
            await asyncio.sleep(0.02)
        told = await explained(house, "high")
        low = await explained(house, "low")
        found = await kept(house.store)
    again = list(replay(found))
    assert all(each.same for each in again)
    assert [each.entry.request.model_name for each in again if each.entry.preempts] == ["high"]
    assert told.instances[0].outcome is Outcome.PLACED
    assert low.instances[0].outcome is Outcome.WAITING


async def test_a_model_without_a_worker_is_in_the_record_and_told(migrated_url: str) -> None:
    async with deciding(migrated_url) as house:
        await house.worker("w", labels={"zone": "a"})
        await house.model("elsewhere", worker_selector={"zone": "b"})
        await house.settled()
        (one,) = (await explained(house, "elsewhere")).instances
        found = await kept(house.store)
    assert [(each.verdict["refused"]["short"], each.request.model_name) for each in found] == [
        (0, "elsewhere")
    ]
    assert all(each.same for each in replay(found))
    assert one.outcome is Outcome.REFUSED
    assert one.near_misses[0].failed == "match the worker selector"


async def test_what_waits_is_told_what_is_missing_and_what_would_help(migrated_url: str) -> None:
    async with deciding(migrated_url) as house:
        await house.worker("big", ram=20, gpus=(40,))
        await house.worker("small", ram=4, gpus=(8,))
        await house.model("tenant", gib=8)
        await house.settled()
        await house.model("wide", gib=36)
        await house.settled()
        told = await explained(house, "wide")
        tenant = await explained(house, "tenant")
    (one,) = told.instances
    if one.outcome is Outcome.PLACED:
        pytest.fail(f"it was to wait: {one.summary}")
    assert one.outcome is Outcome.WAITING
    assert {each.name for each in one.filters} >= {"are ready", "have the model's files"}
    near = {each.worker_name: each for each in one.near_misses}
    assert near["big"].gpus[0].missing_mib == 4 * 1024
    assert near["small"].gpus[0].missing_mib == 28 * 1024
    helps = {each.what: each for each in one.remedies}
    assert helps["with a context of 18 GiB"].backend_parameters == ["--gib=18"]
    move = helps["if an instance of tenant moved"].moves[0]
    assert (move.model_name, [seat.worker_name for seat in move.to]) == ("tenant", ["small"])
    (there,) = tenant.instances
    assert there.outcome is Outcome.PLACED
    assert there.replayed is True
    assert there.with_room == 2
    assert there.summary.startswith("runs on worker ")
    assert there.reasons


async def test_a_suggestion_that_is_followed_helps(migrated_url: str) -> None:
    async with deciding(migrated_url) as house:
        await house.worker("w", ram=16, gpus=(10,))
        model = await house.model("wide", gib=30)
        await house.settled()
        (one,) = (await explained(house, "wide")).instances
        (help_,) = one.remedies
        changed = ModelUpdate(
            **{
                **model.model_dump(include=set(ModelUpdate.model_fields)),
                "backend_parameters": help_.backend_parameters,
            }
        )
        await house.store.models.update(model.id, changed)
        while "running" not in (await house.settled()).values():
            pass
        (one,) = (await explained(house, "wide")).instances
    assert one.outcome is Outcome.PLACED


async def test_the_oldest_pages_go_but_for_those_that_others_are_read_with(migrated_url: str) -> None:
    numbers = count()

    def page(run: str, *, whole: bool) -> NewPage:
        decided = [Decided(model_id=1, instance_id=number, worker_id=None, at=0.0) for number in range(10)]
        return NewPage(run=run, number=next(numbers), whole=whole, body="x" * 100, decided=decided)

    async with await Store.open(migrated_url) as store:
        for whole in (True, False, False, True, False, False):
            await store.decisions.write([page("r", whole=whole)])
        assert await store.decisions.prune() == 0
        assert await store.decisions.prune(keep=50) == 0, "the first whole page is needed by the second"
        assert await store.decisions.prune(keep=40) == 0
        assert await store.decisions.prune(keep=30) == 3
        assert await store.decisions.prune(keep=20) == 0
        assert len(await store.decisions.last_of_model(1)) == 10
        await store.decisions.write([page("r", whole=True)])
        assert await store.decisions.prune(size=100) == 3
        assert await store.decisions.prune(older_than=timedelta(seconds=-5)) == 0, "the last whole page stays"
        bodies = [body async for body in store.decisions.pages("r")]
        assert len(bodies) == 1


async def test_a_page_whose_writing_was_interrupted_is_there_once(migrated_url: str) -> None:
    page = NewPage(
        run="r",
        number=0,
        whole=True,
        body="x",
        decided=[Decided(model_id=1, instance_id=1, worker_id=None, at=0.0)],
    )
    async with await Store.open(migrated_url) as store:
        for _ in range(2):
            async with store.transaction() as tx:
                await tx.decisions.write([page])
        assert [body async for body in store.decisions.pages("r")] == ["x"]


def test_a_damaged_page_is_told() -> None:
    with pytest.raises(GPUStackError, match="damaged"):
        unpack("nonsense")
