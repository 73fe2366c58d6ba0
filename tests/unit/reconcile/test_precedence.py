"""A model of higher priority gets the room of others, and only theirs."""

from __future__ import annotations

from typing import Any

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import InstanceState, Rollout
from gpustack.server.reconcile.actions import Action, Ask, Drain, Park, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer
from gpustack.server.reconcile.state import State
from support.reconcile import a_file, a_model, a_state, a_worker, an_instance, described, running

S = InstanceState


def the_fleet(*instances: Any, urgent: int = 1, priority: int = 5, workers: int = 2) -> State:
    """Return workers with 24 GiB each; model 1 is ordinary, model 2 is not and waits with ``urgent`` instances."""
    count = sum(each.model_id == 1 for each in instances)
    ordinary = a_model(1, replicas=count, ready_replicas=count, rollout=Rollout(drain_seconds=7))
    important = described(a_model(2, name="urgent", priority=priority, replicas=urgent))
    waiting = [
        an_instance(each, S.ANALYZING, model_id=2, spec_digest=important.spec_digest)
        for each in range(100, 100 + urgent)
    ]
    return a_state(
        models=[ordinary, important],
        instances=[*instances, *waiting],
        workers=[a_worker(each) for each in range(1, workers + 1)],
        files=[a_file(each) for each in range(1, workers + 1)],
    )


def answered(state: State, ram: int = 10) -> list[Action]:
    actions = decide(state, 0.0)
    for action in actions:
        if isinstance(action, Ask):
            answer = Answer(claim=ResourceClaim(ram=ram * GIB))
            state.answers.update(dict.fromkeys(action.questions, answer))
            return answered(state, ram)
    return actions


def parked(state: State, action: Any) -> None:
    row = state.instances[action.instance_id]
    state.put_instance(row.model_copy(update={"state": S.PENDING, "state_message": action.message}), 0.0)
    state.notes[action.instance_id].asked.update(state.workers)
    state.park(action.instance_id, action.refusal, 0.0, promise=action.promise)


def drained(state: State, number: int) -> None:
    row = state.instances[number]
    state.put_instance(row.model_copy(update={"draining_since": row.created_at}), 0.0)


def test_one_of_lower_priority_ends_and_its_room_is_taken() -> None:
    state = the_fleet(running(1, 1, ram=20), running(2, 2, ram=20))

    drain, park = answered(state)
    assert drain == Drain(1, "its room goes to model urgent, whose priority is higher", 7, 100)
    assert isinstance(park, Park)
    first, *rest = park.message.splitlines()
    assert first == "waits for the room of tiny-00001, which ends once its requests are answered"
    assert rest[0] == "waiting for room: no worker has enough free memory now"

    drained(state, 1)
    parked(state, park)
    assert not [each for each in decide(state, 1.0) if isinstance(each, Drain | Park | Schedule)], "it waits"
    state.drop_instance(1)
    (schedule,) = [each for each in decide(state, 2.0) if isinstance(each, Schedule)]
    assert (schedule.placed.instance_id, schedule.placed.worker_id) == (100, 1)


def test_nobody_ends_for_an_equal_one_or_in_vain() -> None:
    assert not drains(answered(the_fleet(running(1, 1, ram=20), priority=0, workers=1)))
    assert not drains(answered(the_fleet(running(1, 1, ram=20), workers=1), ram=25))
    assert not drains(answered(the_fleet(running(1, 1, ram=20), workers=2))), "there is room elsewhere"


def test_each_of_two_gets_room_of_its_own() -> None:
    both = running(1, 1, ram=20), running(2, 2, ram=20)

    assert drains(answered(the_fleet(*both, urgent=2), ram=15)) == [(1, 100), (2, 101)]
    assert drains(answered(the_fleet(*both, urgent=2), ram=10)) == [(1, 100)], "there is room for both"


def test_what_ends_anyway_is_waited_for() -> None:
    state = the_fleet(running(1, 1, ram=20), running(2, 2, ram=20))
    drained(state, 2)

    actions = answered(state)
    assert not drains(actions)
    (park,) = [each for each in actions if isinstance(each, Park) and each.instance_id == 100]
    assert park.message.startswith("waits for the room of tiny-00002, which ends once")


def test_a_priority_that_is_raised_counts_at_once() -> None:
    state = the_fleet(running(1, 1, ram=20), workers=1, priority=0)
    (park,) = answered(state)
    parked(state, park)
    assert decide(state, 1.0) == []

    state.put_model(state.models[2].model_copy(update={"priority": 1}))
    assert drains(decide(state, 1.0)) == [(1, 100)]


def test_those_that_serve_are_missed_more() -> None:
    starting = running(1, 1, ram=20).model_copy(update={"state": S.STARTING})
    state = the_fleet(running(2, 2, ram=20), starting)
    state.put_model(state.models[1].model_copy(update={"ready_replicas": 1}))

    assert drains(answered(state)) == [(1, 100)]


def drains(actions: list[Action]) -> list[tuple[int, int | None]]:
    return [(each.instance_id, each.for_instance) for each in actions if isinstance(each, Drain)]


def test_a_promise_ends_when_those_it_waits_for_never_leave() -> None:
    state = the_fleet(running(1, 1, ram=20), workers=1)
    _, park = answered(state)
    assert isinstance(park, Park)
    assert park.promise is not None
    assert park.promise.until == 7 + 30 + 30, "the time to drain, to be reported ended, and a while more"
    drained(state, 1)
    parked(state, park)
    assert state.promises

    (again,) = [each for each in decide(state, 68.0) if isinstance(each, Park)]
    assert again.promise is None
    assert not again.message.startswith("waits for the room of")
    parked(state, again)
    assert not state.promises
