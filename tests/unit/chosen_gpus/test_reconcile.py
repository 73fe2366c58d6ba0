"""GPUs that are chosen by hand, from the model's description to the plan: on a fleet that is described."""

from __future__ import annotations

from typing import Any

import pytest

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import Claim, InstanceState, WorkerPublic
from gpustack.schemas.gpu_selection import GpuSelector
from gpustack.server.reconcile import byhand
from gpustack.server.reconcile.actions import Ask, Park, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer, Question
from gpustack.server.reconcile.state import State
from gpustack.testing.fleet import fleet
from support.reconcile import a_file, a_model, a_state, an_instance, described

S = InstanceState
FLEET = """
workers:
  - name: box
    count: 2
    ram: 64GiB
    reserved_vram: 0
    backends: [obedient]
    gpus: [{name: NVIDIA H100, memory: 80GiB, count: 4}]
"""


def the_workers() -> list[WorkerPublic]:
    return [each.public(number) for number, each in enumerate(fleet(FLEET), 1)]


def a_chosen_model(*gpu_ids: str, each: int | None = None, **more: Any) -> Any:
    return a_model(gpu_selector=GpuSelector(gpu_ids=list(gpu_ids), gpus_per_replica=each), **more)


def waiting(model: Any, *, workers: list[WorkerPublic] | None = None, copies: int | None = None) -> State:
    workers = the_workers() if workers is None else workers
    return a_state(
        models=[model],
        instances=[
            an_instance(number, S.ANALYZING, spec_digest="")
            for number in range(1, (model.replicas if copies is None else copies) + 1)
        ],
        workers=workers,
        files=[a_file(worker.id) for worker in workers],
    )


def answered(state: State, *, each: int = 10) -> tuple[list[Any], list[Question]]:
    """Answer for all GPUs that are asked about, ``each`` GiB on every one, and return what is decided then."""
    asked: list[Question] = []
    actions = decide(state, 0.0)
    while any(isinstance(action, Ask) for action in actions):
        for action in actions:
            for question in action.questions if isinstance(action, Ask) else ():
                count = len(question.devices)
                claim = ResourceClaim(ram=GIB, vram=count * each * GIB, gpus=count)
                state.answers[question] = Answer(claim=claim)
                asked.append(question)
        actions = decide(state, 0.0)
    return actions, asked


def running(number: int, vram: dict[int, int], **more: Any) -> Any:
    return an_instance(number, S.RUNNING, worker_id=1, computed_resource_claim=Claim(vram=vram), **more)


def where(actions: list[Any]) -> list[tuple[int, list[int]]]:
    assert all(isinstance(each, Schedule) for each in actions), actions
    return sorted((each.placed.worker_id, sorted(each.placed.vram)) for each in actions)


def test_copies_get_so_many_of_the_chosen_gpus_each_and_never_the_cpu() -> None:
    ids = ("box-0:cuda:1", "box-0:cuda:3", "box-1:cuda:0", "box-1:cuda:2", "box-1:cuda:3")
    actions, asked = answered(waiting(a_chosen_model(*ids, each=2, replicas=2)))

    assert {len(each.devices) for each in asked} == {2}
    (first, on_first), (second, on_second) = where(actions)
    assert (first, on_first, second) == (1, [1, 3], 2)
    assert set(on_second) < {0, 2, 3}


@pytest.mark.parametrize(
    ("replicas", "most", "counts"),
    [
        (1, None, [4, 2, 1]),
        (2, None, [2, 1]),
        (3, None, [1]),
        (9, None, [1]),
        (1, 2, [2, 1]),
        (0, None, [4, 2, 1]),
    ],
)
def test_without_a_number_each_copy_gets_its_share_as_a_power_of_two(
    replicas: int, most: int | None, counts: list[int]
) -> None:
    ids = [f"box-0:cuda:{index}" for index in range(4)] + ["box-1:cuda:0"]
    bounds = {} if most is None else {"min_replicas": 1, "max_replicas": most}
    assert byhand.counts(a_chosen_model(*ids, replicas=replicas, **bounds), 4) == counts


def test_where_its_share_has_no_room_a_copy_takes_fewer() -> None:
    model = a_chosen_model("box-0:cuda:0", "box-0:cuda:1")
    state = waiting(model)
    other = a_model(2)
    state.put_model(other)
    state.put_instance(running(9, model_id=2, vram={1: 75 * GIB}), 0.0)
    actions, _ = answered(state)
    assert where([each for each in actions if isinstance(each, Schedule)]) == [(1, [0])]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            "box-9:cuda:0",
            "the chosen GPU box-9:cuda:0 is on a worker that has not joined; `gpustack gpus` lists what",
        ),
        ("box-0:cuda:7", "the chosen GPU box-0:cuda:7 is not there; `gpustack gpus` lists what there is"),
        ("box-0:rocm:0", "the chosen GPU box-0:rocm:0 is not there"),
        ("box-0:cuda:2", "the chosen GPU box-0:cuda:2 is faulty: it has fallen off the bus"),
    ],
)
def test_a_gpu_that_is_not_there_is_waited_for_and_named(chosen: str, said: str) -> None:
    workers = the_workers()
    workers[0].status.gpu_devices[2].faults = ["it has fallen off the bus"]
    state = waiting(a_chosen_model(chosen), workers=workers)
    (park,), _ = answered(state)

    assert isinstance(park, Park)
    assert park.message.splitlines()[0].startswith(said)
    state.put_instance(an_instance(1, state_message=park.message), 0.0)
    state.park(1, park.refusal, 0.0)
    assert state.refused_still(1)


def test_a_worker_that_joins_with_the_chosen_gpu_gets_the_copy_at_once() -> None:
    first, second = the_workers()
    state = waiting(a_chosen_model("box-1:cuda:3"), workers=[first])
    (park,), _ = answered(state)
    state.put_instance(an_instance(1, state_message=park.message), 0.0)
    state.park(1, park.refusal, 0.0)

    state.put_worker(second, 1.0)
    assert not state.refused_still(1)
    state.put_file(a_file(second.id))
    state.put_instance(an_instance(1, S.ANALYZING), 1.0)
    actions, _ = answered(state)
    assert where(actions) == [(2, [3])]


def test_what_some_of_the_chosen_gpus_lack_is_told_with_those_that_are_missing() -> None:
    state = waiting(a_chosen_model("box-0:cuda:0", "box-9:cuda:0", each=2))
    (park,), _ = answered(state)
    assert isinstance(park, Park)
    lines = park.message.splitlines()
    assert "box-0: needs 2 GPUs, has 1 of those chosen" in lines
    assert any("box-9:cuda:0 is on a worker that has not joined" in line for line in lines)

    state = waiting(a_chosen_model("box-0:cuda:0"))
    (park,), _ = answered(state, each=81)
    assert isinstance(park, Park)
    assert "box-0: needs 81.0 GiB on the chosen GPU 0, 80.0 GiB of 80.0 GiB is free" in park.message


def test_many_that_are_missing_are_counted() -> None:
    model = a_chosen_model(*(f"gone:cuda:{index}" for index in range(20)))
    lines = byhand.missing(model, the_workers())
    assert len(lines) == 9
    assert lines[-1] == "and 12 more of the chosen GPUs cannot be used"


def test_another_choice_replaces_the_copies() -> None:
    model = a_chosen_model("box-0:cuda:0")
    state = waiting(model, copies=0)
    instance = running(1, vram={0: 10 * GIB}, spec_digest=model.spec_digest)
    state.put_instance(instance, 0.0)
    assert not state.outdated(instance)

    state.put_model(described(model, gpu_selector=GpuSelector(gpu_ids=["box-1:cuda:0"])))
    assert state.outdated(instance)
    state.put_model(described(model, gpu_selector=None))
    assert state.outdated(instance)
