from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gpustack.dataplane import Target
from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic
from gpustack.server.routing import address_of, route_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWN = frozenset({"127.0.0.1", "10.0.0.1"})


def a_model(**fields: Any) -> ModelPublic:
    return ModelPublic(
        **{"id": 1, "created_at": NOW, "updated_at": NOW, "name": "tiny", "cluster_id": 1, **fields}
    )


def an_instance(
    number: int = 1, state: InstanceState = InstanceState.RUNNING, **fields: Any
) -> ModelInstancePublic:
    base = {
        "id": number, "created_at": NOW, "updated_at": NOW, "name": f"tiny-{number}", "model_id": 1,
        "model_name": "tiny", "cluster_id": 1, "state": state, "state_since": NOW, "worker_ip": "10.0.0.1",
        "port": 4000 + number,
    }  # fmt: skip
    return ModelInstancePublic(**{**base, **fields})


def test_only_running_instances_are_targets() -> None:
    route = route_of(a_model(), [an_instance(2), an_instance(1), an_instance(3, InstanceState.STARTING)], OWN)

    assert route.targets == (
        Target(instance_id=1, host="127.0.0.1", port=4001),
        Target(instance_id=2, host="127.0.0.1", port=4002),
    )


def test_an_engine_of_another_machine_is_asked_there() -> None:
    assert address_of(an_instance(worker_ip="10.0.0.2"), OWN) == ("10.0.0.2", 4001)
    assert address_of(an_instance(port=None), OWN) is None


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
    route = route_of(a_model(), instances, OWN)

    assert not route.targets
    assert words in route.obstacle
    assert "\n" not in route.obstacle


def test_a_model_without_replicas_is_stopped() -> None:
    assert "0 replicas" in route_of(a_model(replicas=0), [], OWN).obstacle
