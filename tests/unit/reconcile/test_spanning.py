"""A model that fits on no single worker: divided over several, held and lost and started again as one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gpustack.kit.text import GIB
from gpustack.lifecycle import group as groups
from gpustack.plugin import EstimateRequest, GpuDevice, LaunchPlan, LaunchRequest, Refused, ResourceClaim
from gpustack.schemas import (
    Claim,
    GpuMemory,
    GpuStatus,
    InstanceState,
    MemberReport,
    MemberState,
    MemoryStatus,
    ModelInstancePublic,
    PlacementStrategy,
    WorkerPublic,
    WorkerState,
    WorkerStatus,
)
from gpustack.schemas.workers import ABILITIES, MEMBERS
from gpustack.server.reconcile.clock import workers as look_at_workers
from gpustack.server.reconcile.state import State
from support.reconcile import MemoryStore, Obedient, a_model, a_state, a_worker, running
from support.reconciling import reading, reconciling, until

S, M = InstanceState, MemberState


class Spanning(Obedient):
    """Takes ``whole`` GiB of RAM, on as many workers as it is asked for."""

    def __init__(self, whole: int = 40, refuses: str = "") -> None:
        super().__init__(ResourceClaim(ram=whole * GIB))
        self.whole, self.refuses = whole, refuses
        self.divided: list[int] = []

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        self.divided.append(len(workers))
        if self.refuses:
            raise Refused(self.refuses)
        return [ResourceClaim(ram=self.whole * GIB // len(workers)) for _ in workers]

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        raise NotImplementedError


def a_store(workers: int = 3, **model: Any) -> MemoryStore:
    store = MemoryStore()
    for number in range(1, workers + 1):
        store.workers.put(a_worker(number))
    store.models.put(a_model(replicas=1, **model))
    return store


def only(store: MemoryStore) -> ModelInstancePublic:
    [found] = store.instances.all.values()
    return found


def in_state(store: MemoryStore, *states: InstanceState) -> Any:
    return next((each for each in store.instances.all.values() if each.state in states), None)


async def said(store: MemoryStore, number: int, state: MemberState, message: str = "") -> None:
    """Do what the server does when a worker says how its member is."""
    one = only(store)
    before = groups.of(one)
    report = MemberReport(number=number, attempt=one.attempt, state=state)
    after = groups.take(before, report, message, ran=0.0, restarts=True)
    await store.instances.update(one.id, **groups.columns(before, after))


async def test_it_is_placed_on_the_fewest_workers_that_hold_it_together() -> None:
    store, backend = a_store(), Spanning()
    async with reconciling(store, backend), reading(store):
        placed = await until(lambda: in_state(store, S.SCHEDULED))

    assert [each.number for each in placed.members] == [0, 1]
    assert {each.computed_resource_claim.ram for each in placed.members} == {20 * GIB}
    assert placed.worker_id == placed.members[0].worker_id
    assert len(set(placed.worker_ids)) == 2
    assert {each.worker_name for each in placed.members} <= {"worker-1", "worker-2", "worker-3"}


async def test_what_fits_on_one_worker_is_not_divided() -> None:
    store, backend = a_store(), Spanning(whole=20)
    async with reconciling(store, backend), reading(store):
        placed = await until(lambda: in_state(store, S.SCHEDULED))

    assert placed.members == []
    assert backend.divided == []


async def test_one_that_waits_for_its_turn_on_a_worker_is_not_divided() -> None:
    store, backend = a_store(workers=2), Spanning(whole=20)
    store.models.put(a_model(replicas=3))
    async with reconciling(store, backend), reading(store):
        waiting = await until(
            lambda: "waiting for room" in getattr(in_state(store, S.PENDING), "state_message", "")
        )

    assert waiting
    assert backend.divided == []


async def test_it_waits_where_it_must_not_be_divided() -> None:
    store, backend = a_store(distributed_inference_across_workers=False), Spanning()
    async with reconciling(store, backend), reading(store):
        waits = await until(lambda: (one := in_state(store, S.PENDING)) and one.state_message and one)
        assert waits.state_message.startswith("no worker is large enough")
        store.models.put(a_model(replicas=1))
        await until(lambda: in_state(store, S.SCHEDULED))


async def test_why_it_cannot_be_divided_is_told() -> None:
    store, backend = a_store(), Spanning(refuses="7 heads cannot be divided by 2")
    async with reconciling(store, backend), reading(store):
        waits = await until(lambda: (one := in_state(store, S.PENDING)) and one.state_message and one)

    assert (
        "divided over several: obedient: 7 heads cannot be divided by 2" in waits.state_message.splitlines()
    )


async def test_unequal_workers_hold_it_together() -> None:
    store = a_store(workers=0)
    store.workers.put(a_worker(1, ram=40))
    store.workers.put(a_worker(2, ram=12))

    class Uneven(Spanning):
        def members(self, request: Any, workers: Any) -> Sequence[ResourceClaim]:
            return [ResourceClaim(ram=35 * GIB), *(ResourceClaim(ram=8 * GIB) for _ in workers[1:])]

    async with reconciling(store, Uneven(whole=43)), reading(store):
        # They have no GPUs, so they are of one kind, and the leader must find the larger of them.
        placed = await until(lambda: in_state(store, S.SCHEDULED))

    assert [each.worker_id for each in placed.members] == [1, 2]


async def test_a_worker_that_is_too_old_gets_no_member() -> None:
    store = MemoryStore()
    for number, known in ((1, {}), (2, {ABILITIES: [MEMBERS]})):
        store.workers.put(a_worker(number, catalogue={"backends": ["obedient"], **known}))
    store.models.put(a_model(replicas=1))
    async with reconciling(store, Spanning()), reading(store):
        waits = await until(
            lambda: (one := in_state(store, S.ERROR, S.PENDING)) and one.state_message and one
        )
        assert waits.worker_id is None
        assert "GPUStack of worker worker-1 is too old to take part; upgrade it there" in waits.state_message

        store.workers.put(a_worker(1, version="2"))
        placed = await until(lambda: in_state(store, S.SCHEDULED))

    assert set(placed.worker_ids) == {1, 2}


def with_gpu(number: int, size: int, ram: int = 24) -> WorkerPublic:
    gpu = GpuStatus(
        uuid=f"g{number}", index=0, vendor="nvidia", name="L4", memory=GpuMemory(total=size * GIB)
    )
    return a_worker(number, status=WorkerStatus(memory=MemoryStatus(total=ram * GIB), gpu_devices=[gpu]))


class OnGpus(Spanning):
    """Takes nine tenths of the GPUs of two unequal workers."""

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        raise Refused("no single worker will do")

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        sizes = [sum(each.memory_total for each in devices) for devices in workers]
        if len(set(sizes)) < len(sizes) or len(sizes) != 2:
            raise Refused("takes two unequal ones")
        return [ResourceClaim(ram=0, gpus=1, vram=size * 9 // 10) for size in sizes]


@pytest.mark.parametrize("full", [0, 2, 3])
async def test_of_several_kinds_of_workers_each_gets_what_was_reckoned_for_it(full: int) -> None:
    sizes = {1: 24, 2: 80, 3: 80}
    store = a_store(workers=0)
    for number, size in sizes.items():
        store.workers.put(with_gpu(number, size))
    if full:
        store.models.put(a_model(2, replicas=1))
        held = running(9, worker=full, model_id=2)
        claim = Claim(vram={0: 70 * GIB})
        store.instances.put(held.model_copy(update={"computed_resource_claim": claim}))
    async with reconciling(store, OnGpus()), reading(store):
        placed = await until(lambda: in_state(store, S.SCHEDULED))

    taken = {each.worker_id: each.computed_resource_claim.vram for each in placed.members}
    assert taken == {each: {0: sizes[each] * GIB * 9 // 10} for each in taken}
    assert len(taken) == 2
    assert 1 in taken
    assert full not in taken


async def test_its_members_are_started_again_when_all_have_ended() -> None:
    store = a_store()
    async with reconciling(store, Spanning()), reading(store):
        await until(lambda: in_state(store, S.SCHEDULED))
        for number in (0, 1):
            await said(store, number, M.RUNNING)
        assert only(store).state is S.RUNNING
        await said(store, 1, M.FAILED, "killed")
        await asyncio.sleep(0.1)
        assert (only(store).attempt, only(store).state) == (1, S.ERROR), "the leader has not ended yet"
        await said(store, 0, M.ENDED)
        again = await until(lambda: (one := only(store)).attempt == 2 and one)

    assert (again.state, again.restart_count) == (S.INITIALIZING, 1)
    assert {each.state for each in again.members} == {M.ASSIGNED}
    assert len(again.worker_ids) == 2, "where it was"


async def test_it_is_placed_anew_when_the_worker_of_a_member_is_removed() -> None:
    store = a_store()
    async with reconciling(store, Spanning()), reading(store):
        placed = await until(lambda: in_state(store, S.SCHEDULED))
        for number in (0, 1):
            await said(store, number, M.RUNNING)
        gone = placed.members[1].worker_id
        await store.workers.delete(gone)
        new = await until(lambda: (one := only(store)).attempt == 2 and one)

    assert gone not in new.worker_ids
    assert len(new.worker_ids) == 2


def a_running(*workers: int) -> ModelInstancePublic:
    from gpustack.schemas import Claim, InstanceMember
    from support.reconcile import running

    members = [
        InstanceMember(
            number=number,
            worker_id=each,
            worker_name=f"worker-{each}",
            state=M.RUNNING,
            computed_resource_claim=Claim(ram=20 * GIB),
        )
        for number, each in enumerate(workers)
    ]
    return running(1, worker=workers[0], ram=20, members=members, attempt=1)


def a_divided(*, workers: int = 3) -> State:
    return a_state(instances=[a_running(1, 2)], workers=[a_worker(each) for each in range(1, workers + 1)])


def test_it_holds_room_on_the_workers_of_all_its_members() -> None:
    state = a_divided()

    assert {each: state.fleet.room(each).ram_claimed for each in (1, 2, 3)} == {
        1: 20 * GIB,
        2: 20 * GIB,
        3: 0,
    }
    state.drop_instance(1)
    assert state.fleet.room(1).ram_claimed == state.fleet.room(2).ram_claimed == 0


def test_the_silence_of_any_of_its_workers_is_its_own() -> None:
    state = a_divided()
    state.seen[1] = state.seen[3] = 100.0

    [lost] = [each for each in look_at_workers(state, 100.0) if getattr(each, "instances", ())]

    assert (lost.worker_id, lost.instances) == (2, (1,))  # type: ignore[union-attr]


def test_it_is_replaced_when_a_member_has_to_leave_its_worker() -> None:
    state = a_divided()
    leaving = a_worker(2, state=WorkerState.MAINTENANCE, maintenance=True)
    state.put_worker(leaving, 0.0)

    assert state.outdated(state.instances[1])


async def test_binpack_and_spread_divide_alike() -> None:
    for strategy in PlacementStrategy:
        store = a_store(placement_strategy=strategy)
        async with reconciling(store, Spanning()), reading(store):
            placed = await until(lambda store=store: in_state(store, S.SCHEDULED))
        assert len(placed.members) == 2
