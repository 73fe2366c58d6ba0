"""The fleet of columns: the same decisions as looking at every worker, whatever happened to it before."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB, MIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import (
    FilesThere,
    Gpu,
    Holding,
    Offer,
    Packing,
    Placed,
    Refused,
    Request,
    Way,
    Worker,
    explain,
    place,
)
from gpustack.scheduling.filters import PIPELINE, sift
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.request import is_at
from gpustack.scheduling.snapshot import Room, mib_free, mib_needed
from gpustack.schemas import PlacementStrategy
from support.fleets import Odds

THERE = FilesThere(ready=True)


def a_worker(number: int, *sizes: int, **more: object) -> Worker:
    values: dict[str, object] = {
        "id": number,
        "name": f"worker-{number}",
        "cluster_id": 1,
        "ready": True,
        "backends": frozenset({"vllm"}),
        "ram_total": 64 * GIB,
        "gpus": tuple(
            Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB, island=0) for i, size in enumerate(sizes)
        ),
    }
    return Worker(**{**values, **more})


def a_claim(gpus: int, each: int, ram: int = 1) -> ResourceClaim:
    return ResourceClaim(ram=ram * GIB, vram=gpus * each * GIB, gpus=gpus)


def a_request(*claims: ResourceClaim, instance: int = 1, linked: bool = False, **more: object) -> Request:
    """Return a request for one way whose members are ``claims``."""
    way = Way(backend="vllm", version="1", claim=claims[0], followers=claims[1:], linked=linked)
    values: dict[str, object] = {
        "instance_id": instance,
        "model_id": 1,
        "model_name": "model",
        "cluster_id": 1,
        "strategy": PlacementStrategy.BINPACK,
        "files_elsewhere": THERE,
        "kinds": {"": Offer(ways=(way,))},
    }
    return Request(**{**values, **more})


def put(fleet: Fleet, request: Request) -> Placed:
    answer = fleet.place(request)
    assert isinstance(answer, Placed), explain(answer)
    for each in answer.holdings():
        fleet.hold(each)
    return answer


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), packing=st.sampled_from(Packing))
def test_it_decides_as_a_look_at_every_worker_does(seed: int, packing: Packing) -> None:
    odds = Odds(seed, pieces=seed % 2 == 1)
    count = odds.dice.randint(1, 7)
    fleet = Fleet(odds.workers(count), packing=packing)
    for number in range(20):
        match odds.dice.random():
            case chance if chance < 0.08:
                fleet.put_worker(odds.worker(odds.dice.randint(1, count + 1)))
            case chance if chance < 0.1:
                fleet.remove_worker(odds.dice.randint(1, count))
            case chance if chance < 0.25:
                fleet.release(odds.dice.randint(0, number))
        request = odds.request(number, count + 1)
        answer = fleet.place(request)

        wanted = place(fleet.snapshot(), request, packing)
        assert answer == wanted
        if isinstance(answer, Refused) and isinstance(wanted, Refused):
            assert explain(answer) == explain(wanted)
            assert not any(_every_plan(fleet, request)), "something fits"
        else:
            assert isinstance(answer, Placed)
            _hold(fleet, answer)


def _hold(fleet: Fleet, placed: Placed) -> None:
    """Claim it, and see that the members are whole and apart."""
    holdings = placed.holdings()
    assert len({each.worker_id for each in holdings}) == len(holdings) == len(placed.way.members)
    for holding, (claim, at) in zip(holdings, placed.way.positions, strict=True):
        assert is_at(fleet.room(holding.worker_id).worker, at)
        assert holding.ram == claim.ram
        if claim.pieces:
            assert 1 <= len(holding.vram) <= claim.gpus
            assert placed.pieces.keys() == holding.vram.keys()
            assert sum(placed.pieces.values()) == claim.pieces
            assert sum(holding.vram.values()) >= len(holding.vram) * claim.each + (
                claim.pieces * claim.piece + claim.last
            )
        else:
            assert len(holding.vram) == claim.gpus
            assert sum(holding.vram.values()) >= claim.vram
        fleet.hold(holding)


def _every_plan(fleet: Fleet, request: Request) -> Iterator[bool]:
    """Try every set of GPUs of every worker, and for gangs every set of workers."""
    snapshot = fleet.snapshot()
    workers = [room.worker for room in snapshot.rooms.values()]
    rooms = [snapshot.rooms[each.id] for each in sift(workers, request, PIPELINE).passed]
    ways = {(i, way) for room in rooms for i, way in enumerate(request.offer(room.worker).ways)}
    for index, way in ways:
        there = [room for room in rooms if _offers(room, request, index, way)]
        for some in permutations(there, len(way.members)):
            if len({room.worker.fabric for room in some}) == 1:
                yield all(
                    is_at(room.worker, at) and _fits(room, claim, way, request)
                    for room, (claim, at) in zip(some, way.positions, strict=True)
                )


def _offers(room: Room, request: Request, index: int, way: Way) -> bool:
    ways = request.offer(room.worker).ways
    return way.backend in room.worker.backends and len(ways) > index and ways[index] == way


def _fits(room: Room, claim: ResourceClaim, way: Way, request: Request) -> bool:
    worker = room.worker
    share = -(-claim.vram // claim.gpus) if claim.gpus else 0
    unified = mib_needed(share) * claim.gpus if worker.unified_memory else 0
    if mib_needed(claim.ram) + unified > mib_free(room.ram_free):
        return False
    allowed = None if request.gpus is None else request.gpus.get(worker.name, frozenset())
    if claim.pieces and not worker.unified_memory:
        return any(
            _in_pieces([mib_free(room.vram_free(gpu)) for gpu in gpus], claim)
            for count in range(1, claim.gpus + 1)
            for gpus in combinations(worker.gpus, count)
            if allowed is None or {gpu.index for gpu in gpus} <= allowed
        )
    for gpus in combinations(worker.gpus, claim.gpus):
        islands = {gpu.island for gpu in gpus}
        joined = len(islands) == 1 and None not in islands
        if way.linked and claim.gpus > 1 and not joined:
            continue
        if allowed is not None and not {gpu.index for gpu in gpus} <= allowed:
            continue
        if all(mib_needed(share) <= mib_free(room.vram_free(gpu)) for gpu in gpus):
            return True
    return False


def _in_pieces(free: list[int], claim: ResourceClaim) -> bool:
    """Try every number of pieces on each of these GPUs, one at least."""
    for some in product(range(1, claim.pieces + 1), repeat=len(free)):
        sizes = [claim.each + count * claim.piece for count in some]
        sizes[-1] += claim.last
        if sum(some) == claim.pieces and all(
            mib_needed(size) <= mib for size, mib in zip(sizes, free, strict=True)
        ):
            return True
    return False


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_nothing_is_ever_over_capacity(seed: int) -> None:
    odds = Odds(seed, pieces=seed % 2 == 1)
    workers = odds.workers(odds.dice.randint(1, 6))
    fleet = Fleet(workers)
    for number in range(40):
        request = odds.request(number, len(workers))
        answer = fleet.place(request)
        if isinstance(answer, Placed):
            _hold(fleet, answer)
        if odds.dice.random() < 0.2:
            fleet.release(odds.dice.randint(0, number))
    for worker in workers:
        room = fleet.room(worker.id)
        assert room.ram_claimed + worker.ram_reserved + worker.ram_others <= worker.ram_total or (
            not room.holdings
        )
        for gpu in worker.gpus:
            claimed = room.vram_claimed.get(gpu.index, 0)
            assert claimed == 0 or claimed + gpu.others + worker.vram_reserved <= gpu.total


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_the_order_in_which_things_came_does_not_matter(seed: int) -> None:
    odds = Odds(seed)
    workers = odds.workers(5)
    fleet, holdings = Fleet(workers), []
    for number in range(12):
        answer = fleet.place(odds.request(number, 5))
        if isinstance(answer, Placed):
            _hold(fleet, answer)
            holdings += answer.holdings()
    odds.dice.shuffle(workers)
    odds.dice.shuffle(holdings)
    again = Fleet([], holdings)
    for worker in workers:
        again.put_worker(worker)

    for number in range(12, 24):
        request = odds.request(number, 5)
        one, other = fleet.place(request), again.place(request)
        if isinstance(one, Refused) and isinstance(other, Refused):
            assert explain(one) == explain(other)
        else:
            assert one == other


def test_small_requests_gather_so_that_whole_workers_stay_for_large_ones() -> None:
    fleet = Fleet([a_worker(1, 80, 80), a_worker(2, 80, 80), a_worker(3, 80, 80)])
    for number in range(8):
        put(fleet, a_request(a_claim(1, 20), instance=number))

    assert {each.worker_id for number in range(8) for each in fleet.holdings(number)} == {1}
    put(fleet, a_request(a_claim(2, 80), instance=8))
    put(fleet, a_request(a_claim(2, 80), instance=9))


def test_linked_gpus_are_taken_before_others_and_only_they_when_they_must_be() -> None:
    loose = a_worker(1, 24, 24, gpus=tuple(Gpu(index=i, uuid=f"l{i}", total=24 * GIB) for i in range(2)))
    pairs = a_worker(
        2, gpus=tuple(Gpu(index=i, uuid=f"p{i}", total=24 * GIB, island=i // 2) for i in range(4))
    )
    fleet = Fleet([loose, pairs])

    assert put(fleet, a_request(a_claim(2, 20), instance=1)).vram.keys() == {0, 1}
    fleet.hold(Holding(instance_id=9, model_id=9, worker_id=2, ram=0, vram={2: 20 * GIB}))
    assert put(fleet, a_request(a_claim(2, 20), instance=2)).worker_id == 1
    fleet.release(2)
    refused = fleet.place(a_request(a_claim(2, 20), instance=3, linked=True))
    assert isinstance(refused, Refused)
    assert "worker-1: needs 2 linked GPUs, has 1" in explain(refused)


def test_a_gang_goes_to_several_workers_of_one_fabric_or_to_none() -> None:
    workers = [a_worker(1, 40, fabric="a"), a_worker(2, 40, fabric="b"), a_worker(3, 80, fabric="b")]
    fleet = Fleet(workers)
    unequal = a_request(a_claim(1, 60), a_claim(1, 30))

    placed = put(fleet, unequal)
    assert [each.worker_id for each in placed.holdings()] == [3, 2]
    refused = fleet.place(replace(unequal, instance_id=2))
    assert isinstance(refused, Refused)
    assert "worker-1: has room for one of 2 members, too few others of its network have" in explain(refused)
    fleet.release(1)
    assert not fleet.holdings(1)
    assert put(fleet, replace(unequal, instance_id=2)).worker_id == 3


def test_a_choice_by_hand_is_kept_to() -> None:
    fleet = Fleet([a_worker(1, 80, 80), a_worker(2, 80, 80)])
    chosen = a_request(a_claim(1, 10), gpus={"worker-2": frozenset({1})})

    assert put(fleet, chosen).vram == {1: 10 * GIB}
    refused = fleet.place(replace(a_request(a_claim(2, 10)), gpus={"worker-2": frozenset({1})}))
    assert isinstance(refused, Refused)
    assert "worker-2: needs 2 GPUs, has 1 of those chosen" in explain(refused)


def test_files_on_the_workers_disk_count_but_not_for_ever() -> None:
    fleet = Fleet([a_worker(1, 80), a_worker(2, 82)])
    assert fleet.place(a_request(a_claim(1, 10))).worker_id == 1  # type: ignore[union-attr]
    assert fleet.place(a_request(a_claim(1, 10), local=frozenset({2}))).worker_id == 2  # type: ignore[union-attr]
    fleet.put_worker(a_worker(2, 800))
    assert fleet.place(a_request(a_claim(1, 10), local=frozenset({2}))).worker_id == 1  # type: ignore[union-attr]


def test_a_refused_request_stirs_only_by_what_may_help_it() -> None:
    east, west = {"zone": "east"}, {"zone": "west"}
    fleet = Fleet([a_worker(1, 24, labels=east), a_worker(2, 24, labels=west)])
    put(fleet, a_request(a_claim(1, 20), instance=1, selector=east))
    put(fleet, a_request(a_claim(1, 20), instance=2, selector=west))
    request = a_request(a_claim(1, 20), instance=3, selector=east)
    assert isinstance(fleet.place(request), Refused)
    watch = fleet.watch(request)

    fleet.release(2)
    fleet.hold(Holding(instance_id=7, model_id=1, worker_id=1, ram=GIB))
    fleet.put_worker(a_worker(1, 24, labels=east, ram_others=GIB))
    assert not fleet.stirred(watch), "elsewhere, or less room than before"
    fleet.release(1)
    assert fleet.stirred(watch)
    watch = fleet.watch(request)
    fleet.put_worker(a_worker(3, 8, labels=east))
    assert fleet.stirred(watch), "a new worker"
    watch = fleet.watch(request)
    fleet.put_worker(a_worker(2, 24, labels=east))
    assert fleet.stirred(watch), "a new label"


@pytest.mark.parametrize("size", [MIB // 2, MIB + 1])
def test_parts_of_a_mib_never_add_up_to_more_than_there_is(size: int) -> None:
    gpu = Gpu(index=0, uuid="g", total=3 * MIB)
    fleet = Fleet([a_worker(1, gpus=(gpu,))])
    number = 0
    request = a_request(ResourceClaim(ram=0, vram=size, gpus=1))
    while isinstance(answer := fleet.place(replace(request, instance_id=number)), Placed):
        _hold(fleet, answer)
        number += 1
    assert 1 <= number <= 3 * MIB // size
    assert fleet.room(1).vram_claimed[0] <= gpu.total


def test_a_worker_that_leaves_and_returns_has_what_is_held_there() -> None:
    fleet = Fleet([a_worker(1, 24)])
    put(fleet, a_request(a_claim(1, 20)))
    fleet.remove_worker(1)
    assert explain(fleet.place(a_request(a_claim(1, 20)))) == [  # type: ignore[arg-type]
        "no worker has joined yet; start one, or look at `gpustack workers`"
    ]
    fleet.put_worker(a_worker(1, 24))
    assert isinstance(fleet.place(a_request(a_claim(1, 20), instance=2)), Refused)
    fleet.release(1)
    assert isinstance(fleet.place(a_request(a_claim(1, 20), instance=2)), Placed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_trial_leaves_nothing_behind(seed: int) -> None:
    odds = Odds(seed)
    fleet = Fleet(odds.workers(4))
    for number in range(8):
        answer = fleet.place(odds.request(number, 4))
        if isinstance(answer, Placed):
            _hold(fleet, answer)
    before, request = fleet.snapshot(), odds.request(50, 4)
    decided, watch = fleet.place(request), fleet.watch(request)
    with fleet.trial():
        for number in range(20, 28):
            fleet.release(odds.dice.randint(0, number))
            answer = fleet.place(odds.request(number, 4))
            if isinstance(answer, Placed):
                _hold(fleet, answer)
            if odds.dice.random() < 0.3:
                inner = fleet.snapshot()
                with fleet.trial():
                    fleet.release(odds.dice.randint(0, 8))
                assert fleet.snapshot() == inner
    assert fleet.snapshot() == before
    assert fleet.place(request) == decided
    assert not fleet.stirred(watch)
    assert all(not fleet.holdings(number) for number in range(20, 28))


def test_what_came_to_nothing_stirs_who_waits_for_its_room() -> None:
    fleet = Fleet([a_worker(1, 24)])
    request = a_request(a_claim(1, 20))
    with fleet.trial():
        fleet.hold(Holding(instance_id=8, model_id=8, worker_id=1, ram=0, vram={0: 20 * GIB}))
        watch = fleet.watch(request)
    assert not fleet.stirred(watch)
    fleet.touch(1)
    assert fleet.stirred(watch)
