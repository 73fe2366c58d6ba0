from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import pytest

from gpustack.dataplane import Balancer, Target, Upstream
from gpustack.dataplane.door import instance_credential
from gpustack.db import Door, KeyRow, StoredEvent
from gpustack.kit.errors import Unavailable
from gpustack.schemas import EventType, InstanceState, ModelInstancePublic, ModelPublic
from gpustack.server.routing import Routing, route_of, target_of

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


def test_only_running_instances_are_targets() -> None:
    instances = [an_instance(2), an_instance(1), an_instance(3, InstanceState.STARTING)]
    route = route_of(a_model(), instances, OWN, DOORS)

    assert route.targets == (
        Target(instance_id=1, host="127.0.0.1", port=4001),
        Target(instance_id=2, host="127.0.0.1", port=4002),
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
    instance = an_instance(worker_id=7)
    for number, (topic, thing) in enumerate([("models", a_model()), ("model-instances", instance)]):
        data = thing.model_dump(mode="json")
        await routing.apply(StoredEvent(number, topic, EventType.CREATED, 1, data, {}))
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
    route = route_of(a_model(), instances, OWN, DOORS)

    assert not route.targets
    assert words in route.obstacle
    assert "\n" not in route.obstacle


def test_a_model_without_replicas_is_stopped() -> None:
    assert "0 replicas" in route_of(a_model(replicas=0), [], OWN, {}).obstacle


class Keys:
    """Answers the first question last, with what was true before."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.asked = 0

    async def principals(self) -> list[KeyRow]:
        self.asked += 1
        if self.asked > 1:
            return []
        await self.first.wait()
        return [
            KeyRow(
                id=1,
                digest="d",
                user_id=1,
                username="u",
                is_admin=False,
                allowed_model_names=(),
                expires_at=None,
            )
        ]


async def test_an_older_answer_about_keys_does_not_bring_back_a_revoked_one() -> None:
    keys = Keys()
    routing = a_routing(SimpleNamespace(api_keys=keys))
    both = asyncio.gather(routing.load_keys(), routing.load_keys())
    for _ in range(5):
        await asyncio.sleep(0)
    keys.first.set()
    await both

    assert routing.table.principals == {}


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

    async def away() -> list[KeyRow]:
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
    return Routing(store, feed, Upstream(), Balancer(), built_in=lambda: OWN)
