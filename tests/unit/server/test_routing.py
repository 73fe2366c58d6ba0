from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Self

import pytest

from gpustack.dataplane.door import instance_credential
from gpustack.db import Door, KeyRow, SessionRow, StoredEvent
from gpustack.kit.errors import Unavailable
from gpustack.plugin.routing import Principal, RoutingDelta, RoutingTable, Target
from gpustack.schemas import (
    EventType,
    InstanceState,
    ModelInstancePublic,
    ModelPublic,
    ModelRoutePublic,
    ModelRouteTargetPublic,
)
from gpustack.server.routing import Routing
from gpustack.server.routing_targets import Fleet, route_of, target_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: The uuid of the built-in worker, and how workers are called.
OWN = "uuid-of-the-built-in-worker"
DOORS = {1: Door("10.0.0.1", 10150, "secret", OWN), 7: Door("10.0.0.2", 10150, "secret", "another")}


def a_model(**fields: Any) -> ModelPublic:
    return ModelPublic(
        **{"id": 1, "created_at": NOW, "updated_at": NOW, "name": "tiny", "cluster_id": 1, **fields}
    )


def an_instance(
    number: int = 1, state: InstanceState = InstanceState.RUNNING, **fields: Any
) -> ModelInstancePublic:
    base = {
        "id": number, "created_at": NOW, "updated_at": NOW, "name": f"tiny-{number}", "model_id": 1,
        "model_name": "tiny", "cluster_id": 1, "state": state, "state_since": NOW, "worker_id": 1,
        "port": 4000 + number,
    }  # fmt: skip
    return ModelInstancePublic(**{**base, **fields})


def a_route(
    name: str = "tiny", *targets: tuple[Any, ...], number: int = 1, **fields: Any
) -> ModelRoutePublic:
    """A route to models, each given as id, name, weight and, for the fallback, True; by default a model's own."""
    made = [
        ModelRouteTargetPublic(
            id=10 * number + at, created_at=NOW, updated_at=NOW, route_id=number, model_id=model,
            model_name=called, weight=weight, is_fallback=bool(spare),
        )
        for at, (model, called, weight, *spare) in enumerate(targets or [(1, name, 100)])
    ]  # fmt: skip
    return ModelRoutePublic(id=number, created_at=NOW, updated_at=NOW, name=name, targets=made, **fields)


def a_fleet(*instances: ModelInstancePublic, doors: Any = DOORS, **models: Any) -> Fleet:
    """Instances of ``tiny``, model 1, or of models by their names and ids."""
    fleet = Fleet(models={1: a_model(**models)}, doors=doors, built_in=OWN)
    for each in instances:
        fleet.instances.setdefault(each.model_id, {})[each.id] = each
    return fleet


def test_only_running_instances_are_targets() -> None:
    instances = [an_instance(2), an_instance(1), an_instance(3, InstanceState.STARTING)]
    route = route_of(a_route(), a_fleet(*instances))

    ready = NOW.timestamp()
    assert route.targets == (
        Target(instance_id=1, host="127.0.0.1", port=4001, model="tiny", ready_at=ready),
        Target(instance_id=2, host="127.0.0.1", port=4002, model="tiny", ready_at=ready),
    )


def test_an_engine_of_another_machine_is_asked_at_its_workers_door() -> None:
    there = an_instance(worker_id=7)
    target = target_of(there, OWN, DOORS)

    assert target is not None
    assert (target.host, target.port, target.path_prefix) == ("10.0.0.2", 10150, "/instances/1")
    assert target.credential == instance_credential("secret", 1)
    assert target.credential not in repr(target)
    assert target_of(there, OWN, {}) is None
    assert target_of(an_instance(port=None), OWN, DOORS) is None


@pytest.mark.parametrize(
    "door",
    [
        Door("127.0.0.1", 10150, "s", "another"),
        Door("127.0.0.1", 10150, "s", OWN, home="a copy"),
        Door("", 0, "s"),
    ],
)
def test_an_address_of_the_servers_own_makes_no_built_in_worker(door: Door) -> None:
    """Its loopback may be another one: a container's, where the port is another engine's."""
    for built_in in (OWN, ""):
        target = target_of(an_instance(worker_id=7), built_in, {7: door})
        assert target is None if not door.port else (target is not None and target.port == 10150)


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


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ([], "is starting"),
        ([an_instance(1, InstanceState.PENDING, state_message="no worker fits\nmore")], "no worker fits"),
        ([an_instance(1, InstanceState.ERROR, state_message="engine exited")], "failed: engine exited"),
        ([an_instance(1, InstanceState.ERROR), an_instance(2, InstanceState.STARTING)], "is starting"),
        ([an_instance(1, InstanceState.UNREACHABLE)], "cannot be reached"),
    ],
)
def test_what_keeps_a_model_from_answering_is_said(instances: list[ModelInstancePublic], words: str) -> None:
    route = route_of(a_route(), a_fleet(*instances))

    assert not route.targets
    assert words in route.obstacle
    assert "\n" not in route.obstacle


def test_a_model_without_replicas_is_stopped() -> None:
    assert "0 replicas" in route_of(a_route(), a_fleet(doors={}, replicas=0)).obstacle


def a_key(number: int = 1, user_id: int = 1, **fields: Any) -> KeyRow:
    base = {
        "id": number, "digest": f"digest-{number}", "user_id": user_id, "username": f"user-{user_id}",
        "is_admin": False, "allowed_model_names": (), "expires_at": None,
    }  # fmt: skip
    return KeyRow(**{**base, **fields})


class Keys:
    """API keys as the database has them. Counts what is asked and how many rows that takes; ``hold`` delays answers."""

    def __init__(self, *rows: KeyRow) -> None:
        self.rows = {row.id: row for row in rows}
        self.hold: asyncio.Event | None = None
        self.asked = self.read = 0

    async def principals(
        self, *, keys: Collection[int] | None = None, user_id: int | None = None
    ) -> list[KeyRow]:
        self.asked += 1
        found = (
            [*self.rows.values()] if keys is None else [self.rows[key] for key in keys if key in self.rows]
        )
        found = [row for row in found if user_id in (None, row.user_id)]
        self.read += len(found)
        hold, self.hold = self.hold, None
        if hold is not None:
            await hold.wait()
        return found


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


class Browsers:
    """Sessions as the database has them; those that are over count as there."""

    def __init__(self, *rows: SessionRow) -> None:
        self.rows = {row.id: row for row in rows}

    async def principals(
        self, *, sessions: Collection[int] | None = None, user_id: int | None = None
    ) -> list[SessionRow]:
        found = (
            [*self.rows.values()] if sessions is None else [r for r in self.rows.values() if r.id in sessions]
        )
        return [row for row in found if user_id in (None, row.user_id)]


def a_session(number: int, user_id: int = 1, minutes: float = 60, **fields: Any) -> SessionRow:
    base = {
        "id": number, "digest": f"digest-{number}", "user_id": user_id, "username": f"user-{user_id}",
        "is_admin": False, "expires_at": datetime.now(UTC) + timedelta(minutes=minutes),
    }  # fmt: skip
    return SessionRow(**{**base, **fields})


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


def two_models(*instances: ModelInstancePublic) -> Fleet:
    fleet = a_fleet(*instances)
    fleet.models[2] = a_model(id=2, name="new")
    return fleet


def of_new(number: int, **fields: Any) -> ModelInstancePublic:
    return an_instance(number, model_id=2, model_name="new", **fields)


def test_a_models_weight_is_shared_by_its_instances() -> None:
    fleet = two_models(an_instance(1), an_instance(2), an_instance(3), of_new(4))
    route = route_of(a_route("smart", (1, "tiny", 90), (2, "new", 10)), fleet)

    weights = {target.instance_id: target.weight for target in route.targets}
    assert weights[1] == weights[2] == weights[3] == 3 * weights[4]
    assert [target.model for target in route.targets] == ["tiny", "tiny", "tiny", "new"]
    assert [target.served_name for target in route.targets] == ["tiny", "tiny", "tiny", "new"]


def test_a_single_model_has_the_usual_weight() -> None:
    route = route_of(a_route("tiny", (1, "tiny", 7)), a_fleet(an_instance(1), an_instance(2)))

    assert {(target.weight, target.served_name) for target in route.targets} == {(100, "")}


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


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([(None, "tiny", 100)], "leads to model tiny, which was removed"),
        ([(None, "old", 50), (1, "tiny", 50)], "leads to model tiny, which is starting"),
        ([(1, "tiny", 50), (2, "new", 50)], "leads to model new, which is being downloaded"),
    ],
)
def test_what_keeps_a_route_from_answering_names_the_model(targets: list[Any], words: str) -> None:
    fleet = two_models(of_new(1, state=InstanceState.DOWNLOADING))
    assert route_of(a_route("smart", *targets), fleet).obstacle == words


def test_what_models_can_do_is_not_said_before_it_is_known_of_all() -> None:
    fleet = a_fleet(categories=["llm"])
    route = a_route("smart", (1, "tiny", 50), (2, "new", 50))
    assert route_of(route, fleet).categories == ("llm",)
    fleet.models[2] = a_model(id=2, name="new")
    assert route_of(route, fleet).categories == ()
    fleet.models[2] = a_model(id=2, name="new", categories=["llm", "image"])
    assert route_of(route, fleet).categories == ("llm", "image")


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


def a_routing(store: Any, feed: Any = None) -> Routing:
    return Routing(store, feed, built_in=lambda: OWN)


async def a_loaded_routing(
    keys: Keys,
    models: Sequence[ModelPublic] = (),
    routes: Sequence[ModelRoutePublic] = (),
    sessions: Browsers | None = None,
) -> Routing:
    def listing(*items: Any) -> Any:
        async def answer(**_: object) -> Any:
            return SimpleNamespace(items=items)

        return SimpleNamespace(list=answer)

    async def last_number() -> int:
        return 0

    async def doors() -> dict[int, Door]:
        return dict(DOORS)

    store = SimpleNamespace(
        events=SimpleNamespace(last_number=last_number), models=listing(*models),
        model_routes=listing(*routes), instances=listing(), workers=SimpleNamespace(doors=doors), api_keys=keys,
        sessions=sessions or Browsers(),
    )  # fmt: skip
    routing = a_routing(store)
    await routing.load()
    return routing


_TOPICS: dict[type, str] = {
    ModelPublic: "models", ModelRoutePublic: "model-routes", ModelInstancePublic: "model-instances",
}  # fmt: skip


async def know(routing: Routing, *things: Any, door: int | None = None) -> None:
    """Tell ``routing`` of things by their events, and of the built-in worker's ``door`` if that is named."""
    if door is not None:
        routing._routes.put_door(door, DOORS[door], OWN)
    for thing in things:
        data = thing.model_dump(mode="json")
        await routing.apply(StoredEvent(0, _TOPICS[type(thing)], EventType.UPDATED, thing.id, data, {}))


class Told:
    """What a listener was told."""

    def __init__(self, routing: Routing) -> None:
        self.versions: list[int] = []
        self.deltas: list[Any] = []
        self.leave = routing.listen(self._take)

    def _take(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        self.versions.append(table.version)
        self.deltas.append(delta)


# How models are served ------------------------------------------------------------------------------------


def test_a_route_has_the_times_and_bounds_of_its_model() -> None:
    route = route_of(
        a_route(),
        a_fleet(
            an_instance(),
            timeouts={"connect": 1, "first_byte": 20, "between": 30},
            queue={"slots": 4, "tokens": 1000, "requests": 7, "wait_seconds": 9},
        ),
    )
    assert (route.timeouts.connect, route.timeouts.first_byte, route.timeouts.between) == (1, 20, 30)
    assert (route.queue_tokens, route.queue_requests, route.queue_seconds) == (1000, 7, 9)
    assert [each.slots for each in route.targets] == [4]


def test_of_several_models_the_most_generous_one_counts() -> None:
    fleet = a_fleet(timeouts={"first_byte": 20}, queue={"tokens": 1000, "requests": 7})
    fleet.models[2] = a_model(id=2, name="big", timeouts={"first_byte": 90}, queue={"tokens": 5000})
    route = route_of(a_route("both", (1, "tiny", 50), (2, "big", 50)), fleet)
    assert (route.timeouts.first_byte, route.queue_tokens, route.queue_requests) == (90, 5000, None)


@pytest.mark.parametrize(
    ("instances", "asleep"),
    [
        ([], True),
        ([an_instance(state=InstanceState.STARTING)], True),
        ([an_instance(state=InstanceState.PENDING)], True),
        ([an_instance(draining_since=NOW)], True),
        ([an_instance(state=InstanceState.ERROR, state_message="no such file")], False),
        ([an_instance()], False),
    ],
)
def test_requests_wait_for_a_model_that_sleeps_or_starts_and_not_for_one_that_failed(
    instances: list[ModelInstancePublic], asleep: bool
) -> None:
    fleet = a_fleet(*instances, min_replicas=0, max_replicas=2, autoscaling={"start_seconds": 33})
    route = route_of(a_route(), fleet)
    assert (route.asleep, route.start_seconds) == (asleep, 33)


def test_a_model_with_fixed_replicas_never_sleeps() -> None:
    assert not route_of(a_route(), a_fleet(replicas=0)).asleep
    assert not route_of(a_route(), a_fleet(replicas=1, min_replicas=1, max_replicas=2)).asleep


async def test_the_models_that_a_route_leads_to_are_known_by_their_shares() -> None:
    routing = a_routing(None)
    both = a_route("both", (1, "tiny", 30), (2, "big", 10), (3, "x", 9, True))
    await know(routing, a_model(), a_model(id=2, name="big"), both)
    assert routing.leads("both") == {1: 0.75, 2: 0.25}
    await know(routing, a_route("new", (1, "tiny", 0)))
    assert (routing.leads("both"), routing.leads("new")) == ({}, {1: 1.0})
    await routing.apply(StoredEvent(1, "model-routes", EventType.DELETED, 1, {}, {}))
    assert routing.leads("new") == {}
