"""How a route is reached, and what is said of one that is not: from models, instances and doors."""

from __future__ import annotations

from typing import Any

import pytest

from gpustack.dataplane.door import instance_credential
from gpustack.db import Door
from gpustack.plugin.routing import Target
from gpustack.schemas import (
    InstanceState,
    ModelInstancePublic,
)
from gpustack.server.routing_targets import Fleet, route_of, target_of
from support.routing import DOORS, NOW, OWN, a_fleet, a_model, a_route, an_instance, of_new


def two_models(*instances: ModelInstancePublic) -> Fleet:
    fleet = a_fleet(*instances)
    fleet.models[2] = a_model(id=2, name="new")
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
