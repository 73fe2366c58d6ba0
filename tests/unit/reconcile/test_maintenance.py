"""A worker that is taken out of service: nothing new comes there, and what is there moves without a gap."""

from __future__ import annotations

from gpustack.plugin import ResourceClaim
from gpustack.schemas import InstanceState, WorkerState
from gpustack.server.reconcile.actions import Action, Ask, Create, Drain, LoseWorker, ReturnWorker
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer
from gpustack.server.reconcile.state import State
from support.reconcile import a_file, a_model, a_state, a_worker, an_instance

S = InstanceState
RESTING = {"state": WorkerState.MAINTENANCE, "maintenance": True}
WHY = "worker worker-1 is in maintenance"


def answered(state: State) -> list[Action]:
    """Decide with every question of a backend answered."""
    actions = decide(state, 0.0)
    for action in actions:
        if isinstance(action, Ask):
            for question in action.questions:
                state.answers[question] = Answer(claim=ResourceClaim(ram=1))
            return answered(state)
    return actions


def running(number: int, worker: int) -> object:
    return an_instance(number, S.RUNNING, worker_id=worker, port=40000)


def test_what_is_there_serves_until_another_one_runs_elsewhere() -> None:
    model = a_model(replicas=1, ready_replicas=1)
    state = a_state(models=[model], instances=[running(1, 1)], workers=[a_worker(1), a_worker(2)])
    state.put_worker(a_worker(1, **RESTING), 1)

    assert decide(state, 1) == [Create(1, 1)]
    state.put_instance(an_instance(2, S.STARTING, worker_id=2), 2)
    assert decide(state, 2) == []
    state.put_instance(running(2, 2), 3)
    assert Drain(1, WHY, 120) in decide(state, 3)


def test_nothing_new_comes_there() -> None:
    state = a_state(instances=[an_instance(1)], workers=[a_worker(1, **RESTING)], files=[a_file(1)])

    [parked] = [each for each in answered(state) if hasattr(each, "message")]
    assert "ready" in parked.message


def test_without_room_elsewhere_it_serves_on() -> None:
    model = a_model(replicas=1, ready_replicas=1)
    state = a_state(
        models=[model], instances=[running(1, 1)], workers=[a_worker(1, **RESTING)], files=[a_file(1)]
    )
    state.put_instance(an_instance(2), 1)

    assert not [each for each in answered(state) if isinstance(each, Drain)]


def test_back_in_service_it_keeps_what_has_not_moved() -> None:
    model = a_model(replicas=1, ready_replicas=1)
    state = a_state(models=[model], instances=[running(1, 1)], workers=[a_worker(1, **RESTING), a_worker(2)])
    state.put_instance(an_instance(2, S.STARTING, worker_id=2), 1)
    state.put_worker(a_worker(1), 2)

    assert [each.instance_id for each in decide(state, 2) if isinstance(each, Drain)] == [2]


def test_it_is_lost_and_returns_as_others_do() -> None:
    state = a_state(models=[], workers=[a_worker(1, **RESTING)])
    assert [type(each) for each in decide(state, 20.1)] == [LoseWorker]

    state.put_worker(a_worker(1, state=WorkerState.UNREACHABLE, maintenance=True), 20.1)
    state.alive(1, 30.0)
    assert decide(state, 30.0) == [ReturnWorker(1)]
    state.put_worker(a_worker(1, **RESTING), 31.0)
    assert decide(state, 50.0) == []
