"""Who leaves for a request of higher priority: nobody without need, and somebody whenever that helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

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
    Preemption,
    Refused,
    Request,
    Snapshot,
    Way,
    Worker,
    place,
    preempt,
)
from gpustack.scheduling.fleet import Fleet
from gpustack.schemas import PlacementStrategy
from support.fleets import Odds


def a_worker(number: int, *sizes: int) -> Worker:
    return Worker(
        id=number,
        name=f"worker-{number}",
        cluster_id=1,
        ready=True,
        backends=frozenset({"vllm"}),
        ram_total=64 * GIB,
        gpus=tuple(Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB) for i, size in enumerate(sizes)),
    )


def a_request(*claims: ResourceClaim, priority: int = 5) -> Request:
    way = Way(backend="vllm", version="1", claim=claims[0], followers=claims[1:])
    return Request(
        instance_id=99,
        model_id=99,
        model_name="urgent",
        cluster_id=1,
        strategy=PlacementStrategy.BINPACK,
        files_elsewhere=FilesThere(ready=True),
        kinds={"": Offer(ways=(way,))},
        priority=priority,
    )


def gpus(count: int, each: int) -> ResourceClaim:
    return ResourceClaim(ram=GIB, vram=count * each * GIB, gpus=count)


def held(instance: int, worker: int, gpu: int, size: int, priority: int = 0, harm: int = 0) -> Holding:
    return Holding(
        instance_id=instance,
        model_id=instance,
        worker_id=worker,
        ram=GIB,
        vram={gpu: size * GIB},
        priority=priority,
        harm=harm,
    )


def victims(
    workers: Iterable[Worker], holdings: Iterable[Holding], request: Request
) -> tuple[int, ...] | None:
    found = preempt(Snapshot.of(workers, holdings), request)
    return None if found is None else found.victims


def test_only_lower_priorities_leave() -> None:
    one, both = a_worker(1, 24), [held(1, 1, 0, 20, priority=5)]

    assert victims([one], both, a_request(gpus(1, 20), priority=5)) is None
    assert victims([one], both, a_request(gpus(1, 20), priority=6)) == (1,)
    assert victims([one], both, a_request(gpus(1, 25), priority=6)) is None


def test_the_lowest_priority_leaves_first_then_the_fewest_then_the_least_missed() -> None:
    workers = [a_worker(1, 24), a_worker(2, 24)]
    request = a_request(gpus(1, 20))

    assert victims(workers, [held(1, 1, 0, 20, priority=2), held(2, 2, 0, 20, priority=1)], request) == (2,)
    assert victims(workers, [held(1, 1, 0, 9), held(2, 1, 0, 9), held(3, 2, 0, 18)], request) == (3,)
    assert victims(workers, [held(1, 1, 0, 20, harm=1), held(2, 2, 0, 20)], request) == (2,)
    assert victims(workers, [held(2, 2, 0, 20), held(1, 1, 0, 20)], request) == (1,)


def test_who_can_stay_stays() -> None:
    two = a_worker(1, 24, 24)
    holdings = [held(1, 1, 0, 20), held(2, 1, 1, 2), held(3, 1, 1, 20)]

    found = preempt(Snapshot.of([two], holdings), a_request(gpus(1, 20)))
    assert found is not None
    assert len(found.victims) == 1
    assert 2 not in found.victims
    assert victims([two], holdings, a_request(gpus(2, 22))) == (1, 3)


def test_a_gang_takes_the_place_of_others_on_all_its_workers() -> None:
    workers = [a_worker(1, 24), a_worker(2, 24), a_worker(3, 24)]
    holdings = [held(1, 1, 0, 20), held(2, 2, 0, 20, priority=7), held(3, 3, 0, 20), held(3, 2, 0, 1)]

    found = preempt(Snapshot.of(workers, holdings), a_request(gpus(1, 20), gpus(1, 20)))
    assert found is not None
    assert found.victims == (1, 3)
    assert {each.worker_id for each in found.placed.holdings()} == {1, 3}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_nobody_leaves_in_vain_and_somebody_whenever_it_helps(seed: int) -> None:
    odds = Odds(seed)
    count = odds.dice.randint(1, 5)
    fleet = Fleet(odds.workers(count))
    for number in range(30):
        request = replace(odds.request(number, count), priority=odds.dice.randint(0, 3))
        match fleet.place(request):
            case Placed() as placed:
                for each in placed.holdings():
                    fleet.hold(replace(each, harm=odds.dice.randint(0, 2)))
            case Refused():
                _look_at(fleet, request)


def _look_at(fleet: Fleet, request: Request) -> None:
    before = fleet.snapshot()
    found = fleet.preempt(request)
    assert found == preempt(before, request)
    assert fleet.snapshot() == before
    lower = {
        each.instance_id
        for room in before.rooms.values()
        for each in room.holdings
        if each.priority < request.priority
    }
    with fleet.trial():
        for each in lower if found is None else found.victims:
            fleet.release(each)
        assert isinstance(fleet.place(request), Refused if found is None else Placed)
    assert fleet.snapshot() == before
    if found is not None:
        assert found.victims
        assert lower.issuperset(found.victims)
        _all_are_needed(before, request, found)


def _all_are_needed(before: Snapshot, request: Request, found: Preemption) -> None:
    taken = {each.worker_id for each in found.placed.holdings()}
    there = Snapshot({each: before.rooms[each] for each in sorted(taken)})
    for number in found.victims:
        rest = there
        for other in found.victims:
            rest = rest if other == number else rest.release(other)
        assert isinstance(place(rest, request), Refused)
