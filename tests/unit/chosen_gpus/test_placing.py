"""GPUs that are chosen by hand, as the scheduler sees them: kept to, shared last, and refusals that name them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import (
    FilesThere,
    Gpu,
    Holding,
    Offer,
    Placed,
    Refused,
    Request,
    Way,
    Worker,
    explain,
)
from gpustack.scheduling.account import account
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.records import Entry, RecordedFleet, entries, replay
from gpustack.scheduling.remedies import remedies
from gpustack.schemas import PlacementStrategy


def a_worker(number: int, *sizes: int, **more: Any) -> Worker:
    values: dict[str, Any] = {
        "id": number,
        "name": f"w{number}",
        "cluster_id": 1,
        "ready": True,
        "backends": frozenset({"x"}),
        "ram_total": 64 * GIB,
        "gpus": tuple(Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB) for i, size in enumerate(sizes)),
    }
    return Worker(**{**values, **more})


def ask(count: int, each: int, instance: int = 1, **more: Any) -> Request:
    claim = ResourceClaim(ram=GIB, vram=count * each * GIB, gpus=count)
    values: dict[str, Any] = {
        "instance_id": instance,
        "model_id": 1,
        "model_name": "tiny",
        "cluster_id": 1,
        "files_elsewhere": FilesThere(ready=True),
        "kinds": {"": Offer(ways=(Way(backend="x", version="1", claim=claim),))},
    }
    return Request(**{**values, **more})


def put(fleet: Fleet, request: Request) -> tuple[int, set[int]]:
    placed = fleet.place(request)
    assert isinstance(placed, Placed), explain(placed)
    fleet.hold(placed.holding())
    return placed.worker_id, {*placed.vram}


def refusal(fleet: Fleet, request: Request) -> list[str]:
    refused = fleet.place(request)
    assert isinstance(refused, Refused)
    return explain(refused)


@pytest.mark.parametrize("strategy", PlacementStrategy)
def test_copies_get_disjoint_parts_and_share_only_what_is_left(strategy: PlacementStrategy) -> None:
    fleet = Fleet([a_worker(1, 80, 80, 80), a_worker(2, 80, 80)])
    gpus = {"w1": frozenset({0, 2}), "w2": frozenset({1})}
    took = [put(fleet, ask(1, 10, number, gpus=gpus, strategy=strategy)) for number in range(1, 5)]

    assert sorted(took[:3]) == [(1, {0}), (1, {2}), (2, {1})]
    assert took[3] in took[:3]


def test_others_of_the_model_are_kept_away_from_but_those_of_other_models_are_not() -> None:
    fleet = Fleet([a_worker(1, 80, 24)])
    gpus = {"w1": frozenset({0, 1})}
    fleet.hold(Holding(instance_id=9, model_id=9, worker_id=1, ram=0, vram={1: GIB}))
    assert put(fleet, ask(1, 10, 1, gpus=gpus)) == (1, {0})
    assert put(fleet, ask(1, 10, 2, gpus=gpus)) == (1, {1})


def test_a_worker_that_could_not_start_it_comes_after_a_gpu_that_is_shared() -> None:
    fleet = Fleet([a_worker(1, 80), a_worker(2, 80)])
    gpus = {"w1": frozenset({0}), "w2": frozenset({0})}
    assert put(fleet, ask(1, 10, 1, gpus=gpus)) == (1, {0})
    assert put(fleet, ask(1, 10, 2, gpus=gpus, avoid=frozenset({2}))) == (1, {0})


def test_a_refusal_names_the_chosen_gpus_and_what_they_lack() -> None:
    fleet = Fleet([a_worker(1, 24, 80), a_worker(2, 80), a_worker(3, 80, ready=False)])
    fleet.hold(Holding(instance_id=9, model_id=9, worker_id=1, ram=0, vram={0: 16 * GIB}))

    lines = refusal(fleet, ask(1, 20, gpus={"w1": frozenset({0})}))
    assert lines[0] == "waiting for room: no worker has enough free memory now"
    assert "w1: needs 20.0 GiB on the chosen GPU 0, 8.0 GiB of 24.0 GiB is free (16.0 GiB claimed)" in lines
    assert not [line for line in lines if line.startswith(("w2", "w3"))], "of others there is nothing to say"

    lines = refusal(fleet, ask(1, 40, gpus={"w1": frozenset({0})}))
    assert lines[0] == "no worker is large enough, even when empty", "the free GPU 1 was not chosen"
    assert "w1: needs 2 GPUs, has 1 of those chosen" in refusal(fleet, ask(2, 1, gpus={"w1": frozenset({1})}))
    assert "w1: the chosen GPU 7 cannot be used there" in refusal(
        fleet, ask(1, 1, gpus={"w1": frozenset({7})})
    )
    assert "w3: is not ready" in refusal(fleet, ask(1, 1, gpus={"w3": frozenset({0})}))
    nobody = refusal(fleet, ask(1, 1, gpus={"gone": frozenset({0})}))
    assert "0 of 3 workers have a GPU that was chosen" in nobody
    assert nobody == explain(fleet.refuse(ask(1, 1, gpus={"gone": frozenset({0})})))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_never_elsewhere_never_too_much_and_apart_as_long_as_that_is_possible(data: st.DataObject) -> None:
    """Copies of equal size on empty GPUs: while whole unused ones are left, none is shared."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    fleet = Fleet([a_worker(number, *[10] * count) for number, count in enumerate(sizes, 1)])
    every = [(number, index) for number, count in enumerate(sizes, 1) for index in range(count)]
    chosen = data.draw(st.sets(st.sampled_from(every), min_size=1))
    gpus = {f"w{number}": frozenset(i for n, i in chosen if n == number) for number, _ in chosen}
    count, each = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 6))
    strategy = data.draw(st.sampled_from(PlacementStrategy))
    used: dict[tuple[int, int], int] = {}
    for instance in range(1, 9):
        fresh = [len([g for n, g in chosen - used.keys() if n == number]) for number, _ in chosen]
        answer = fleet.place(ask(count, each, instance, gpus=gpus, strategy=strategy))
        room = {gpu for gpu in chosen if used.get(gpu, 0) + each <= 10}
        fits = any(len([g for n, g in room if n == number]) >= count for number, _ in chosen)
        assert isinstance(answer, Placed) is fits, "refused exactly when the chosen GPUs are full"
        if not isinstance(answer, Placed):
            return
        took = {(answer.worker_id, index) for index in answer.vram}
        assert took <= chosen
        assert len(took) == count
        if max(fresh) >= count:
            assert not took & used.keys()
        for gpu in took:
            used[gpu] = used.get(gpu, 0) + each
        fleet.hold(answer.holding())


def test_it_is_told_that_other_gpus_of_the_worker_would_do() -> None:
    fleet = Fleet([a_worker(1, 24, 80)])
    request = ask(1, 40, gpus={"w1": frozenset({0})})
    refused = fleet.place(request)
    assert isinstance(refused, Refused)

    (remedy,) = remedies(fleet, refused)
    assert remedy.what == "on GPUs that were not chosen"
    assert {*remedy.placed.vram} == {1}
    full = fleet.place(ask(1, 90, gpus={"w1": frozenset({0})}))
    assert isinstance(full, Refused)
    assert remedies(fleet, full) == []


def test_a_model_of_higher_priority_gets_the_room_on_the_chosen_gpu_and_nobody_else_leaves() -> None:
    fleet = Fleet([a_worker(1, 80, 80)])
    for number, index in ((8, 0), (9, 1)):
        fleet.hold(Holding(instance_id=number, model_id=9, worker_id=1, ram=0, vram={index: 60 * GIB}))
    found = fleet.preempt(ask(1, 40, gpus={"w1": frozenset({1})}, priority=1))

    assert found is not None
    assert [*found.victims] == [9]
    assert {*found.placed.vram} == {1}


def test_a_decision_by_hand_is_recorded_and_made_again() -> None:
    recorder = RecordedFleet([a_worker(1, 24, 80), a_worker(2, 80)])
    first, second = ask(1, 10, 1, gpus={"w1": frozenset({0, 1})}), ask(1, 90, 2, gpus={"w1": frozenset({1})})
    placed = recorder.decide(first)
    assert isinstance(placed, Placed)
    assert "its GPUs were chosen by hand" in account(recorder, first, placed).reasons
    recorder.hold(placed.holding())
    assert isinstance(recorder.decide(second), Refused)

    read = [Entry.read(each.write()) for each in entries(recorder.take(10))]
    made = list(replay(read))
    assert [each.entry.request.gpus for each in made] == [first.gpus, second.gpus]
    assert all(each.same for each in made)
