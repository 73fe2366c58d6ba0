"""The table that routing keeps by events: what a change reads, makes anew and tells."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Self

import pytest

from gpustack.db import Door, KeyRow, StoredEvent
from gpustack.kit.errors import Unavailable
from gpustack.plugin.routing import Principal
from gpustack.schemas import (
    EventType,
    InstanceState,
)
from support.routing import (
    Browsers,
    Keys,
    Told,
    a_key,
    a_loaded_routing,
    a_model,
    a_route,
    a_routing,
    a_session,
    an_instance,
    know,
    of_new,
)


async def test_a_door_that_changes_is_learnt_from_the_workers_event() -> None:
    doors = {7: Door("10.0.0.2", 10150, "old")}

    async def door(worker_id: int) -> Door:
        return doors[worker_id]

    routing = a_routing(SimpleNamespace(workers=SimpleNamespace(door=door)))
    await know(routing, a_model(), a_route(), an_instance(worker_id=7))
    assert not routing.table.routes["tiny"].targets

    await routing.apply(StoredEvent(3, "workers", EventType.CREATED, 7, {}, {}))
    (before,) = routing.table.routes["tiny"].targets
    doors[7] = Door("10.0.0.2", 10151, "new")
    await routing.apply(StoredEvent(4, "workers", EventType.UPDATED, 7, {}, {}))
    (after,) = routing.table.routes["tiny"].targets

    assert (before.port, after.port) == (10150, 10151)
    assert before.credential != after.credential
    await routing.apply(StoredEvent(5, "workers", EventType.DELETED, 7, {}, {}))
    assert not routing.table.routes["tiny"].targets


async def test_an_older_answer_about_keys_does_not_bring_back_a_revoked_one() -> None:
    keys = Keys(a_key())
    keys.hold = hold = asyncio.Event()
    routing = a_routing(SimpleNamespace(api_keys=keys))
    both = asyncio.gather(routing.refresh_keys({1}), routing.forget_keys({1}))
    for _ in range(5):
        await asyncio.sleep(0)
    hold.set()
    await both

    assert routing.table.principals == {}


async def test_sessions_are_principals_beside_keys_of_the_same_number_and_digest() -> None:
    browsers = Browsers(a_session(1), a_session(2, user_id=2))
    routing = await a_loaded_routing(Keys(a_key(1)), sessions=browsers)
    assert set(routing.table.principals) == {"digest-1", "session digest-1", "session digest-2"}
    assert routing.table.principals["session digest-2"].user_id == 2
    assert routing.table.principals["session digest-2"].key_id is None

    browsers.rows[3] = a_session(3)
    await routing.apply(StoredEvent(1, "sessions", EventType.CREATED, 3, {}, {}))
    assert "session digest-3" in routing.table.principals
    await routing.apply(StoredEvent(2, "sessions", EventType.DELETED, 1, {}, {}))
    assert set(routing.table.principals) == {"digest-1", "session digest-2", "session digest-3"}

    browsers.rows = {2: a_session(2, user_id=2, is_admin=True)}
    changed = {"is_admin": [False, True]}
    await routing.apply(StoredEvent(3, "users", EventType.UPDATED, 2, {}, changed))
    assert routing.table.principals["session digest-2"].is_admin
    browsers.rows.clear()
    await routing.apply(StoredEvent(4, "users", EventType.DELETED, 2, {}, {}))
    assert set(routing.table.principals) == {"digest-1", "session digest-3"}


async def test_sessions_that_are_over_go_with_the_next_that_begins() -> None:
    browsers = Browsers(a_session(1, minutes=-1))
    routing = await a_loaded_routing(Keys(), sessions=browsers)
    browsers.rows = {2: a_session(2)}
    await routing.apply(StoredEvent(1, "sessions", EventType.CREATED, 2, {}, {}))
    assert set(routing.table.principals) == {"session digest-2"}


async def test_a_change_of_one_key_among_many_reads_that_one_and_copies_nothing() -> None:
    keys = Keys(*(a_key(number, user_id=number % 1000) for number in range(1, 5001)))
    routing = await a_loaded_routing(keys)
    told = Told(routing)
    before = routing.table
    kept = before.principals["digest-2"]
    keys.asked = keys.read = 0

    keys.rows[1] = a_key(1, allowed_model_names=("tiny",))
    keys.rows[5001] = a_key(5001)
    for kind, number in [(EventType.UPDATED, 1), (EventType.CREATED, 5001), (EventType.DELETED, 3)]:
        await routing.apply(StoredEvent(number, "api-keys", kind, number, {}, {}))

    assert (keys.asked, keys.read) == (2, 2)
    assert routing.table.principals is before.principals
    assert routing.table.principals["digest-2"] is kept
    assert routing.table.principals["digest-1"].allowed == {"tiny"}
    assert [(each.principals_changed, each.principals_removed) for each in told.deltas] == [
        ({"digest-1"}, set()),
        ({"digest-5001"}, set()),
        (set(), {"digest-3"}),
    ]
    assert told.versions == [before.version + 1, before.version + 2, before.version + 3]
    assert [each.since for each in told.deltas] == [version - 1 for version in told.versions]


async def test_what_happens_to_a_user_concerns_its_own_keys_only() -> None:
    keys = Keys(a_key(1), a_key(2), a_key(3, user_id=2))
    routing = await a_loaded_routing(keys)
    told = Told(routing)
    keys.asked = keys.read = 0

    async def changed(kind: EventType, **fields: Any) -> None:
        await routing.apply(StoredEvent(1, "users", kind, 1, {}, fields))

    await changed(EventType.UPDATED, full_name=["a", "b"])
    assert (keys.asked, told.deltas) == (0, [])
    keys.rows |= {1: a_key(1, is_admin=True), 2: a_key(2, is_admin=True)}
    await changed(EventType.UPDATED, is_admin=[False, True])
    assert (keys.asked, keys.read) == (1, 2)
    assert told.deltas[-1].principals_changed == {"digest-1", "digest-2"}
    assert routing.table.principals["digest-1"].is_admin
    del keys.rows[1], keys.rows[2]  # as for one that is not active any more
    await changed(EventType.UPDATED, is_active=[True, False])
    assert routing.table.principals.keys() == {"digest-3"}
    await routing.apply(StoredEvent(2, "users", EventType.DELETED, 2, {}, {}))
    assert routing.table.principals == {}
    assert keys.asked == 2


async def test_a_fixed_credential_stays_whatever_is_read() -> None:
    me = Principal(user_id=1, username="admin", is_admin=True)
    routing = await a_loaded_routing(Keys(a_key(1)))
    told = Told(routing)
    routing.add_fixed("mine", me)

    assert told.deltas[-1].principals_changed == {"mine"}
    await routing.load()
    await routing.apply(StoredEvent(1, "users", EventType.DELETED, 1, {}, {}))
    assert routing.table.principals == {"mine": me}


async def test_a_changed_model_makes_only_its_own_routes_anew() -> None:
    routing = a_routing(None)
    for number in (1, 2):
        name = f"m{number}"
        await know(
            routing,
            a_model(id=number, name=name),
            a_route(name, (number, name, 100), number=number, aliases=[f"also-{name}"]),
            an_instance(number, model_id=number, model_name=name),
            door=1,
        )
    told = Told(routing)
    before, routes = routing.table, dict(routing.table.routes)

    await know(routing, an_instance(3, model_id=1, model_name="m1", worker_id=1))
    await know(routing, an_instance(4, InstanceState.DOWNLOADING, model_id=1, model_name="m1"))

    (delta,) = told.deltas  # the second changed nothing that requests could notice
    assert (delta.changed, delta.removed) == ({"m1", "also-m1"}, set())
    assert routing.table.routes is before.routes
    assert routing.table.routes["m2"] is routes["m2"] is routes["also-m2"]
    assert len(routing.table.routes["m1"].targets) == 2
    assert routing.table.routes["also-m1"] is routing.table.routes["m1"]
    served = {target.served_name for target in routing.table.routes["m1"].targets}
    assert served == {"m1"}  # a client may write the alias, which the engine does not know


async def test_names_that_a_route_has_no_longer_are_gone() -> None:
    routing = a_routing(None)
    await know(routing, a_model(), a_route(aliases=["a", "b"]))
    told = Told(routing)

    await know(routing, a_route("small", (1, "tiny", 100), aliases=["b"]))
    assert routing.table.routes.keys() == {"small", "b"}
    assert (told.deltas[-1].changed, told.deltas[-1].removed) == ({"small", "b"}, {"tiny", "a"})
    await routing.apply(StoredEvent(1, "model-routes", EventType.DELETED, 1, {}, {}))
    assert routing.table.routes == {}
    assert told.deltas[-1].removed == {"small", "b"}


async def test_loading_again_tells_that_everything_may_differ_and_keeps_what_is_equal() -> None:
    routing = await a_loaded_routing(Keys(a_key(1)), [a_model()], [a_route()])
    told = Told(routing)
    before = routing.table
    await routing.load()

    assert (told.deltas, told.versions) == ([None], [before.version + 1])
    assert routing.table.routes["tiny"] is before.routes["tiny"]
    assert routing.table.principals["digest-1"] is before.principals["digest-1"]


async def test_events_are_not_passed_over_for_a_reading_that_failed() -> None:
    keys = Keys(a_key(1))
    routing = await a_loaded_routing(keys, [a_model()], [a_route()])
    before, number = routing.table, routing._number

    async def later() -> int:
        return 99

    async def away(**_: object) -> list[KeyRow]:
        raise Unavailable("away", retry_after=1)

    routing._store.events.last_number = later  # type: ignore[method-assign]
    keys.principals = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await routing.load()
    assert (routing.table, routing._number) == (before, number)


async def test_a_listener_that_fails_or_leaves_disturbs_nobody() -> None:
    routing = a_routing(None)

    def failing(*_: object) -> None:
        raise ValueError

    routing.listen(failing)
    told, left = Told(routing), Told(routing)
    left.leave()
    left.leave()
    routing.add_fixed("mine", Principal(user_id=1, username="admin"))

    assert (len(told.versions), left.versions) == (1, [])


async def test_a_fallback_is_the_route_that_its_model_has_or_takes_what_nobody_else_can() -> None:
    routing = a_routing(None)
    smart = a_route("smart", (1, "tiny", 100), (2, "new", 100, True), number=5)
    await know(
        routing, a_model(), a_model(id=2, name="new"), smart, an_instance(1, worker_id=1), of_new(2), door=1
    )
    route = routing.table.routes["smart"]
    assert (route.fallback, [target.weight for target in route.targets]) == ("", [100, 0])

    own = a_route("new", (2, "new", 100), number=6)
    await know(routing, own)
    route = routing.table.routes["smart"]
    assert (route.fallback, [target.instance_id for target in route.targets]) == ("new", [1])
    assert route.models == ("tiny",)
    assert route.fallback_status_codes == ()

    await know(routing, smart.model_copy(update={"fallback_status_codes": ["5xx"]}))
    assert routing.table.routes["smart"].fallback_status_codes == ("5xx",)

    await routing.apply(StoredEvent(1, "model-routes", EventType.DELETED, 6, {}, {}))
    assert routing.table.routes["smart"].fallback == ""


async def test_a_subscription_is_closed_when_an_event_cannot_be_taken_in() -> None:
    class Subscription:
        closed = False

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            self.closed = True

        def __aiter__(self) -> Self:
            return self

        async def __anext__(self) -> StoredEvent:
            return StoredEvent(1, "api-keys", EventType.CREATED, 1, {}, {})

    async def away(**_: object) -> list[KeyRow]:
        raise Unavailable("away", retry_after=1)

    made: list[Subscription] = []

    def subscribe(*_: object, **__: object) -> Subscription:
        made.append(Subscription())
        return made[-1]

    store = SimpleNamespace(api_keys=SimpleNamespace(principals=away))
    routing = a_routing(store, SimpleNamespace(subscribe=subscribe))
    running = asyncio.create_task(routing.run())
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert made
    assert all(each.closed for each in made)


async def test_the_models_that_a_route_leads_to_are_known_by_their_shares() -> None:
    routing = a_routing(None)
    both = a_route("both", (1, "tiny", 30), (2, "big", 10), (3, "x", 9, True))
    await know(routing, a_model(), a_model(id=2, name="big"), both)
    assert routing.leads("both") == {1: 0.75, 2: 0.25}
    await know(routing, a_route("new", (1, "tiny", 0)))
    assert (routing.leads("both"), routing.leads("new")) == ({}, {1: 1.0})
    await routing.apply(StoredEvent(1, "model-routes", EventType.DELETED, 1, {}, {}))
    assert routing.leads("new") == {}
