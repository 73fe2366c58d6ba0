"""What the scheduler believes to be claimed is what the rows say, whatever happened."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.lifecycle.instance import HOLDS_CLAIM
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import Snapshot
from gpustack.schemas import (
    Claim,
    GpuMemory,
    GpuStatus,
    Heartbeat,
    InstanceState,
    MemoryStatus,
    WorkerState,
    WorkerStatus,
)
from gpustack.server.reconcile.actions import Ask, Park, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.notes import Rows
from gpustack.server.reconcile.questions import Answer
from gpustack.server.reconcile.state import State
from support.reconcile import NOW, a_file, a_model, a_state, a_worker, an_instance, running

S = InstanceState


def gpu(index: int, **more: Any) -> GpuStatus:
    return GpuStatus(
        index=index, uuid=f"gpu-{index}", vendor="acme", name="A", memory=GpuMemory(total=8 * GIB), **more
    )


def a_gpu_worker(number: int, gpus: int = 2, **more: Any) -> Any:
    status = WorkerStatus(
        memory=MemoryStatus(total=24 * GIB), gpu_devices=[gpu(index) for index in range(gpus)]
    )
    return a_worker(number, status=status, **more)


def claimed(snapshot: Snapshot) -> dict[int, tuple[int, dict[int, int]]]:
    return {
        number: (room.ram_claimed, {index: size for index, size in room.vram_claimed.items() if size})
        for number, room in snapshot.rooms.items()
    }


def of_rows(state: State) -> dict[int, tuple[int, dict[int, int]]]:
    found: dict[int, tuple[int, dict[int, int]]] = {number: (0, {}) for number in state.workers}
    for each in state.instances.values():
        if each.worker_id in found and each.state in HOLDS_CLAIM:
            ram, vram = found[each.worker_id]
            for index, size in each.computed_resource_claim.vram.items():
                vram[index] = vram.get(index, 0) + size
            found[each.worker_id] = ram + each.computed_resource_claim.ram, vram
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_fleet_follows_the_rows(seed: int) -> None:
    dice = random.Random(seed)
    state = a_state(workers=[a_gpu_worker(1), a_gpu_worker(2)], files=[a_file(1), a_file(2)])
    for step in range(40):
        match dice.randrange(6):
            case 0 | 1 | 2:
                claim = Claim(
                    ram=dice.randint(0, 3) * GIB, vram={dice.randrange(2): dice.randint(1, 3) * GIB}
                )
                worker = dice.choice((None, 1, 2, 3))
                row = an_instance(
                    dice.randint(1, 9),
                    dice.choice(list(S)) if worker else S.PENDING,
                    worker_id=worker,
                    computed_resource_claim=claim if worker else Claim(),
                )
                state.put_instance(row, float(step))
            case 3:
                state.drop_instance(dice.randint(1, 9))
                state._deleted.clear()  # numbers are used again here
            case 4:
                state.drop_worker(dice.randint(1, 3))
            case _:
                state.put_worker(a_gpu_worker(dice.randint(1, 3)), float(step))
        assert claimed(state.snapshot()) == of_rows(state)
        assert state.unplaced == {each.id for each in state.instances.values() if each.worker_id is None}
    rows = Rows(
        models=[a_model()],
        instances=[running(2), an_instance(3)],
        workers=[a_gpu_worker(1)],
        files=[a_file(1)],
    )
    state.replace_rows(rows, now=50.0, wall=NOW)
    assert claimed(state.snapshot()) == of_rows(state) == {1: (4 * GIB, {})}


def answered(state: State, claim: ResourceClaim) -> list[Any]:
    actions = decide(state, 0.0)
    for action in actions:
        if isinstance(action, Ask):
            state.answers.update(
                {each: Answer(claim=claim if each.devices else None) for each in action.questions}
            )
            return answered(state, claim)
    return actions


def test_deciding_claims_nothing_and_sees_what_was_decided_before() -> None:
    state = a_state(
        models=[a_model(replicas=3)],
        instances=[an_instance(each, S.ANALYZING) for each in (1, 2, 3)],
        workers=[a_gpu_worker(1)],
        files=[a_file(1)],
    )
    actions = answered(state, ResourceClaim(ram=GIB, vram=6 * GIB, gpus=1))

    first, second, third = actions
    assert isinstance(first, Schedule)
    assert isinstance(second, Schedule)
    assert {*first.placed.vram} | {*second.placed.vram} == {0, 1}
    assert isinstance(third, Park)
    assert claimed(state.snapshot()) == {1: (0, {})}
    again = decide(state, 0.0)
    assert again[:2] == actions[:2], "and so the same is decided again"
    assert isinstance(again[2], Park)
    assert again[2].message == third.message


def test_workers_of_one_kind_are_asked_about_once() -> None:
    state = a_state(
        instances=[an_instance(1, S.ANALYZING)],
        workers=[a_gpu_worker(1), a_gpu_worker(2), a_gpu_worker(3, gpus=1)],
        files=[a_file(1), a_file(2), a_file(3)],
    )
    (ask,) = decide(state, 0.0)

    assert isinstance(ask, Ask)
    assert sorted(len(each.devices) for each in ask.questions) == [0, 1, 2]


def test_a_heartbeat_that_frees_nothing_for_those_who_wait_wakes_nobody() -> None:
    state = a_state(
        models=[a_model(replicas=1, worker_selector={"zone": "east"})],
        instances=[an_instance(1, S.ANALYZING)],
        workers=[a_gpu_worker(1, labels={"zone": "east"}), a_gpu_worker(2)],
        files=[a_file(1), a_file(2)],
    )
    (park,) = answered(state, ResourceClaim(ram=64 * GIB, vram=GIB, gpus=1))
    state.put_instance(an_instance(1, state_message=park.message), 0.0)
    state.park(1, park.refusal, 0.0)
    full = WorkerStatus(memory=MemoryStatus(total=24 * GIB, used=20 * GIB), gpu_devices=[gpu(0), gpu(1)])
    free = full.model_copy(update={"memory": MemoryStatus(total=24 * GIB, used=2 * GIB)})

    for worker, wakes in ((2, False), (1, True)):
        assert not state.heard(worker, Heartbeat(status=full), 1.0)
        assert state.heard(worker, Heartbeat(status=free), 2.0) is wakes


def test_a_worker_in_another_state_takes_part_no_more() -> None:
    state = a_state(instances=[an_instance(1, S.ANALYZING)], workers=[a_gpu_worker(1)], files=[a_file(1)])
    state.put_worker(a_gpu_worker(1, state=WorkerState.NOT_READY), 0.0)

    (park,) = answered(state, ResourceClaim(ram=GIB))
    assert isinstance(park, Park)
    assert "not ready" in park.message


def test_gpus_that_are_linked_are_taken_together() -> None:
    groups = ("a", "b", "a", "b")
    linked = [gpu(index).model_copy(update={"link_group": group}) for index, group in enumerate(groups)]
    worker = a_worker(1, status=WorkerStatus(memory=MemoryStatus(total=24 * GIB), gpu_devices=linked))
    state = a_state(instances=[an_instance(1, S.ANALYZING)], workers=[worker], files=[a_file(1)])

    (schedule,) = answered(state, ResourceClaim(ram=GIB, vram=12 * GIB, gpus=2))
    assert isinstance(schedule, Schedule)
    assert {*schedule.placed.vram} in ({0, 2}, {1, 3})
