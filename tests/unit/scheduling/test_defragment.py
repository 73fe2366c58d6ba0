"""Moves that make room: each is possible when its turn comes, none is for nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import (
    FilesThere,
    Gpu,
    Offer,
    Placed,
    Proposal,
    Request,
    Snapshot,
    Way,
    Worker,
    place,
    propose,
)
from gpustack.scheduling.defragment import replayed
from gpustack.schemas import PlacementStrategy

BINPACK = PlacementStrategy.BINPACK


def a_worker(number: int, *gpus: int, ram: int = 64, **more: Any) -> Worker:
    found = tuple(Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB) for i, size in enumerate(gpus))
    values = {"id": number, "name": f"w{number}", "cluster_id": 1, "ready": True, "ram_total": ram * GIB}
    return Worker(**{**values, "backends": frozenset({"x"}), "gpus": found, **more})


def a_request(number: int, vram: int = 0, gpus: int = 1, *, ram: int = 0, **more: Any) -> Request:
    gpus = gpus if vram else 0
    claim = ResourceClaim(ram=ram * GIB, vram=vram * gpus * GIB, gpus=gpus)
    offer = Offer(ways=(Way(backend="x", version="1", claim=claim),))
    values: dict[str, Any] = {
        "instance_id": number,
        "model_id": number,
        "model_name": f"m{number}",
        "cluster_id": 1,
        "strategy": BINPACK,
        "files": {each: FilesThere(ready=True) for each in range(1, 9)},
        "offers": dict.fromkeys(range(1, 9), offer),
    }
    return Request(**{**values, **more})


def at(request: Request, worker: int, *gpus: int) -> Placed:
    """Return where an instance is, however it came there."""
    way = request.offers[worker].ways[0]
    share = way.claim.vram // (way.claim.gpus or 1)
    return Placed(
        instance_id=request.instance_id, model_id=request.model_id, worker_id=worker, way=way,
        ram=way.claim.ram, vram=dict.fromkeys(gpus, share),
    )  # fmt: skip


def a_fleet(workers: list[Worker], *placed: Placed) -> Snapshot:
    return Snapshot.of(workers, (each.holding() for each in placed))


def moves(proposal: Proposal) -> list[tuple[int, int, int, list[int]]]:
    return [
        (each.instance_id, each.from_worker, each.to.worker_id, sorted(each.to.vram))
        for each in proposal.steps
    ]


# For what waits --------------------------------------------------------------------------------------------


def test_one_that_needs_two_whole_gpus_gets_them_by_one_move() -> None:
    first, second, large = a_request(1, 10), a_request(2, 10), a_request(3, 24, gpus=2)
    fleet = a_fleet([a_worker(1, 24, 24), a_worker(2, 24, 24)], at(first, 1, 1), at(second, 2, 0))
    found = propose(fleet, [first, second], [large])
    assert len(found.steps) == 1
    (made,) = found.placed
    assert made.instance_id == 3
    assert made.worker_id == found.steps[0].from_worker


def test_one_on_the_same_worker_moves_from_gpu_to_gpu() -> None:
    small, other, large = a_request(1, 4), a_request(2, 10), a_request(3, 24)
    fleet = a_fleet([a_worker(1, 24, 24)], at(small, 1, 0), at(other, 1, 1))
    found = propose(fleet, [small, other], [large])
    assert moves(found) == [(1, 1, 1, [1])]
    assert [sorted(each.vram) for each in found.placed] == [[0]]


def test_machines_without_gpus_are_rearranged_too_and_only_what_helps_is_moved() -> None:
    sizes = {1: 2, 2: 10, 3: 12}
    there = {number: a_request(number, ram=size) for number, size in sizes.items()}
    fleet = a_fleet(
        [a_worker(1, ram=32), a_worker(2, ram=32)], at(there[1], 1), at(there[2], 1), at(there[3], 2)
    )
    found = propose(fleet, there.values(), [a_request(9, ram=24)])
    # Without the first, which alone is not enough and not needed beside the second.
    assert moves(found) == [(2, 1, 2, [])]
    assert [(each.instance_id, each.worker_id) for each in found.placed] == [(9, 1)]


def test_what_fits_already_moves_nobody() -> None:
    small = a_request(1, 10)
    fleet = a_fleet([a_worker(1, 24)], at(small, 1, 0))
    assert propose(fleet, [small], [a_request(2, 10)]) == Proposal()


def test_what_fits_nowhere_whatever_moves_moves_nobody() -> None:
    small = a_request(1, 10)
    fleet = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(small, 1, 0))
    assert propose(fleet, [small], [a_request(2, 40)]) == Proposal()


def test_the_first_that_waits_gets_the_room() -> None:
    small, other = a_request(1, 10), a_request(2, 10)
    fleet = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(small, 1, 0), at(other, 2, 0))
    found = propose(fleet, [small, other], [a_request(4, 24), a_request(3, 24)])
    assert [each.instance_id for each in found.placed] == [4]


# Whole GPUs ------------------------------------------------------------------------------------------------


def test_two_halves_are_brought_together() -> None:
    first, second = a_request(1, 8), a_request(2, 10)
    fleet = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(first, 1, 0), at(second, 2, 0))
    found = propose(fleet, [first, second])
    assert moves(found) == [(1, 1, 2, [0])]
    assert found.freed == ((1, 0),)


def test_what_would_take_another_empty_gpu_stays() -> None:
    first, second = a_request(1, 20), a_request(2, 20)
    fleet = a_fleet([a_worker(1, 24), a_worker(2, 24), a_worker(3, 24)], at(first, 1, 0), at(second, 2, 0))
    assert propose(fleet, [first, second]) == Proposal()


def test_copies_of_a_model_that_is_to_be_spread_are_not_brought_together() -> None:
    spread = {"model_id": 7, "strategy": PlacementStrategy.SPREAD}
    first, second, stranger = a_request(1, 8, **spread), a_request(2, 8, **spread), a_request(3, 8)
    two = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(first, 1, 0), at(second, 2, 0))
    assert propose(two, [first, second]) == Proposal()
    beside = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(first, 1, 0), at(stranger, 2, 0))
    assert len(propose(beside, [first, stranger]).steps) == 1


def test_nobody_is_moved_from_a_gpu_to_the_processor() -> None:
    ways = (
        Way(backend="x", version="1", claim=ResourceClaim(ram=0, vram=8 * GIB, gpus=1)),
        Way(backend="x", version="1", claim=ResourceClaim(ram=8 * GIB)),
    )
    small = a_request(1, 8, offers=dict.fromkeys(range(1, 9), Offer(ways=ways)))
    fleet = a_fleet([a_worker(1, 24), a_worker(2)], at(small, 1, 0))
    assert propose(fleet, [small], [a_request(2, 24)]) == Proposal()


def test_who_may_not_be_moved_stays() -> None:
    first, second = a_request(1, 8), a_request(2, 10)
    fleet = a_fleet([a_worker(1, 24), a_worker(2, 24)], at(first, 1, 0), at(second, 2, 0))
    assert propose(fleet, []) == Proposal()
    assert moves(propose(fleet, [second])) == [(2, 2, 1, [0])]
    assert propose(fleet, [first, second], most=0) == Proposal()


# Whatever the fleet ----------------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Snapshot, list[Request], list[Request]]:
    workers = [
        a_worker(number, *draw(st.lists(st.sampled_from([16, 24]), max_size=3)), ram=draw(st.integers(8, 32)))
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]
    snapshot, running = Snapshot.of(workers), []
    strategies = st.sampled_from(list(PlacementStrategy))
    for number in range(1, draw(st.integers(0, 9)) + 1):
        request = a_request(
            number, draw(st.integers(0, 12)), draw(st.integers(1, 2)), ram=draw(st.integers(0, 8)),
            model_id=draw(st.integers(1, 4)), strategy=draw(strategies),
        )  # fmt: skip
        # Where it went when other workers were full.
        there = draw(st.sets(st.integers(1, 4), min_size=1))
        found = place(snapshot, replace(request, offers={each: request.offers[each] for each in there}))
        if isinstance(found, Placed):
            snapshot = snapshot.hold(found.holding())
            running.append(request)
    waiting = [
        a_request(100 + n, draw(st.integers(0, 24)), draw(st.integers(1, 2)), ram=draw(st.integers(0, 16)))
        for n in range(draw(st.integers(0, 2)))
    ]
    return snapshot, running, waiting


@settings(deadline=None)
@given(fleets())
def test_every_step_fits_when_its_turn_comes_and_all_of_them_are_good_for_something(
    given_: tuple[Snapshot, list[Request], list[Request]],
) -> None:
    snapshot, running, waiting = given_
    found = propose(snapshot, running, waiting)
    after = replayed(snapshot, found.steps)
    assert after is not None
    moved = [each.instance_id for each in found.steps]
    assert len(set(moved)) == len(moved)
    assert bool(found.steps) == bool(found.placed or found.freed)
    assert propose(snapshot, running, waiting) == found
    helped = {each.instance_id for each in found.placed}
    for request in waiting:
        fits = place(snapshot, request)
        if request.instance_id in helped:
            assert not isinstance(fits, Placed), "it needed no moves"
            break
        if isinstance(fits, Placed):
            snapshot = snapshot.hold(fits.holding())


@settings(deadline=None)
@given(fleets())
def test_emptying_gpus_leaves_more_of_them_empty(
    given_: tuple[Snapshot, list[Request], list[Request]],
) -> None:
    snapshot, running, _ = given_

    def empty(fleet: Snapshot) -> int:
        return sum(
            not room.vram_claimed.get(gpu.index, 0)
            for room in fleet.rooms.values()
            for gpu in room.worker.gpus
        )

    found = propose(snapshot, running)
    after = replayed(snapshot, found.steps)
    assert after is not None
    assert (empty(after) > empty(snapshot)) == bool(found.steps)
