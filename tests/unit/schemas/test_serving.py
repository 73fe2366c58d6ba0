"""How a model is served: bounds that fit each other, one clear line for those that do not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gpustack.schemas import ModelCreate, ModelPatch, ModelPublic
from support.reconcile import a_model


def created(**more: Any) -> ModelCreate:
    return ModelCreate.model_validate({"name": "tiny", "local_path": "/m.gguf", **more})


def patched(model: ModelPublic, **changes: Any) -> Any:
    return ModelPatch.model_validate(changes).applied_to(model)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, (1, None, None)),
        ({"replicas": 3}, (3, None, None)),
        ({"min_replicas": 0}, (1, 0, 1)),
        ({"min_replicas": 2}, (2, 2, 2)),
        ({"max_replicas": 4}, (1, 1, 4)),
        ({"min_replicas": 0, "replicas": 0}, (0, 0, 1)),
        ({"min_replicas": 2, "max_replicas": 8, "replicas": 5}, (5, 2, 8)),
    ],
)
def test_what_is_not_said_follows_from_what_is(given: dict[str, Any], found: tuple[object, ...]) -> None:
    model = created(**given)
    assert (model.replicas, model.min_replicas, model.max_replicas) == found


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas 2 is below min_replicas 3"),
        (
            {"max_replicas": 2, "replicas": 3},
            "replicas 3 is not between min_replicas 1 and max_replicas 2",
        ),
        (
            {"min_replicas": 0, "queue": {"requests": 0}},
            "min_replicas 0 needs requests that wait for a start, and queue.requests 0 lets none",
        ),
        (
            {"autoscaling": {"outstanding": 0, "kv_cache": 0}},
            "outstanding and kv_cache are both 0: then there is nothing to scale by",
        ),
        ({"timeouts": {"connect": 0}}, "greater than 0"),
        ({"timeouts": {"between": float("nan")}}, "finite number"),
        ({"timeouts": {"total": 5}}, "Extra inputs"),
        ({"priority": 10**9}, "less than or equal to 1000000"),
        ({"max_replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        created(**given)
    (problem,) = caught.value.errors()
    assert line in problem["msg"]
    assert "\n" not in problem["msg"]


def test_bounds_that_are_changed_move_the_replicas_that_nobody_named() -> None:
    model = a_model(replicas=1)
    assert patched(model, min_replicas=3).replicas == 3
    scaled = a_model(replicas=5, min_replicas=1, max_replicas=8)
    assert patched(scaled, max_replicas=2).replicas == 2
    assert patched(scaled, description="x").replicas == 5


def test_replicas_that_are_named_have_to_be_within_the_bounds() -> None:
    scaled = a_model(replicas=5, min_replicas=1, max_replicas=8)
    assert patched(scaled, replicas=8).replicas == 8
    with pytest.raises(ValidationError, match="replicas 9 is not between"):
        patched(scaled, replicas=9)


def test_bounds_can_be_taken_away_again() -> None:
    fixed = patched(a_model(replicas=5, min_replicas=1, max_replicas=8), min_replicas=None, max_replicas=None)
    assert (fixed.replicas, fixed.min_replicas, fixed.max_replicas) == (5, None, None)


def test_one_time_out_is_changed_and_the_others_stay() -> None:
    model = a_model(timeouts={"connect": 5, "between": 9})
    changed = patched(model, timeouts={"connect": 7}, queue={"slots": 3}, autoscaling={"idle_seconds": 5})
    assert (changed.timeouts.connect, changed.timeouts.between, changed.timeouts.first_byte) == (7, 9, 600)
    assert (changed.queue.slots, changed.autoscaling.idle_seconds) == (3, 5)
    assert patched(changed_public(changed), queue=None).queue.slots is None


def changed_public(update: Any) -> ModelPublic:
    return a_model(**update.model_dump(exclude={"name", "cluster_id"}))


def test_how_a_model_is_served_needs_no_other_engine() -> None:
    """Whatever of it changes, instances go on as they are."""
    before = a_model()
    after = a_model(priority=5, timeouts={"connect": 9}, queue={"slots": 2}, min_replicas=0, max_replicas=3)
    assert before.spec_digest == after.spec_digest
