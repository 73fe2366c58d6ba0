"""What would help a refused request: each answer was placed, and stays true when it is carried out."""

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
    Refused,
    Request,
    Way,
    Worker,
    place,
)
from gpustack.scheduling.account import account
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.remedies import Alternative, remedies
from gpustack.scheduling.snapshot import mib_free
from gpustack.schemas import PlacementStrategy
from support.fleets import Odds


def a_worker(number: int, *sizes: int, **more: object) -> Worker:
    gpus = tuple(Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB) for i, size in enumerate(sizes))
    values: dict[str, object] = {
        "id": number,
        "name": f"worker-{number}",
        "cluster_id": 1,
        "ready": True,
        "backends": frozenset({"vllm"}),
        "ram_total": 64 * GIB,
        "gpus": gpus,
    }
    return Worker(**{**values, **more})


def a_request(gpus: int, each: int, instance: int = 1, **more: object) -> Request:
    claim = ResourceClaim(ram=GIB, vram=gpus * each * GIB, gpus=gpus)
    values: dict[str, object] = {
        "instance_id": instance,
        "model_id": instance,
        "model_name": f"model-{instance}",
        "cluster_id": 1,
        "strategy": PlacementStrategy.BINPACK,
        "files_elsewhere": FilesThere(ready=True),
        "kinds": {"": Offer(ways=(Way(backend="vllm", version="1", claim=claim),))},
    }
    return Request(**{**values, **more})


def refused_by(fleet: Fleet, request: Request) -> Refused:
    answer = fleet.place(request)
    assert isinstance(answer, Refused)
    return answer


def test_of_each_kind_of_change_the_first_that_fits_is_told() -> None:
    fleet = Fleet([a_worker(1, 20)])
    refused = refused_by(fleet, a_request(1, 40))
    kinds = [
        [Alternative(what=f"{each} GB", request=a_request(1, each)) for each in (30, 18, 10)],
        [Alternative(what="two GPUs", request=a_request(2, 20))],
    ]
    assert [each.what for each in remedies(fleet, refused, kinds)] == ["with 18 GB"]


def test_an_instance_whose_move_makes_room_is_named_with_where_it_goes() -> None:
    fleet = Fleet([a_worker(1, 24), a_worker(2, 8)])
    fleet.hold(Holding(instance_id=7, model_id=7, worker_id=1, ram=GIB, vram={0: 6 * GIB}))
    refused = refused_by(fleet, a_request(1, 22))
    (found,) = remedies(fleet, refused, (), {7: a_request(1, 6, instance=7)})
    assert found.what == "if an instance of model-7 moved"
    assert (found.placed.worker_id, found.moves[0].instance_id, found.moves[0].to.worker_id) == (1, 7, 2)
    assert fleet.held_on(1)[0].instance_id == 7, "nothing was moved"


def test_a_move_to_nowhere_is_no_help() -> None:
    fleet = Fleet([a_worker(1, 24), a_worker(2, 4)])
    fleet.hold(Holding(instance_id=7, model_id=7, worker_id=1, ram=GIB, vram={0: 6 * GIB}))
    refused = refused_by(fleet, a_request(1, 22))
    assert remedies(fleet, refused, (), {7: a_request(1, 6, instance=7)}) == []


def test_a_label_that_no_worker_with_room_has_is_named() -> None:
    fleet = Fleet([a_worker(1, 24, labels={"zone": "a"})])
    refused = refused_by(fleet, a_request(1, 10, selector={"zone": "a", "pool": "x"}))
    assert [each.what for each in remedies(fleet, refused)] == [
        "with the label pool=x on worker worker-1",
        "if its worker selector did not ask for pool=x",
    ]


def test_a_worker_that_is_away_is_named() -> None:
    away = a_worker(2, 24, ready=False, state_message="silent")
    fleet = Fleet([a_worker(1, 8), away])
    refused = refused_by(fleet, a_request(1, 10))
    assert [each.what for each in remedies(fleet, refused)] == ["once worker worker-2 is ready"]
    assert fleet.worker(2) == away


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_what_is_told_to_help_does(seed: int, count: int) -> None:
    odds = Odds(seed)
    fleet = Fleet(odds.workers(count))
    requests: dict[int, Request] = {}
    for number in range(1, 25):
        request = odds.request(number, count)
        answer = fleet.place(request)
        if isinstance(answer, Placed):
            requests[number] = request
            for each in answer.holdings():
                fleet.hold(each)
            continue
        before = fleet.snapshot()
        told = remedies(fleet, answer, (), requests)
        assert fleet.snapshot() == before
        for remedy in told:
            snapshot = before
            workers = {room.worker.id: room.worker for room in before.rooms.values()}
            if remedy.what.startswith("once"):
                there = workers[remedy.placed.worker_id]
                away = there if not there.ready else None
                for share in remedy.placed.followers:
                    away = away or (None if workers[share.worker_id].ready else workers[share.worker_id])
                assert away is not None
                snapshot = snapshot.with_worker(replace(away, ready=True, state_message=""))
            if remedy.what.startswith("with the label"):
                there = workers[remedy.placed.worker_id]
                snapshot = snapshot.with_worker(replace(there, labels={**there.labels, **request.selector}))
            for move in remedy.moves:
                snapshot = snapshot.release(move.instance_id)
            asked = replace(request, selector={}) if "selector" in remedy.what else request
            if "not chosen" in remedy.what:
                named = [each for each in workers.values() if each.name in (request.gpus or {})]
                every = {each.name: frozenset(gpu.index for gpu in each.gpus) for each in named}
                asked = replace(request, gpus=every)
            assert isinstance(place(snapshot, asked), Placed)
            for holding in remedy.placed.holdings():
                snapshot = snapshot.hold(holding)
            for move in remedy.moves:
                assert isinstance(place(snapshot, requests[move.instance_id]), Placed)
                for holding in move.to.holdings():
                    snapshot = snapshot.hold(holding)
            for room in snapshot.rooms.values():
                taken = room.worker.ram_others + room.worker.ram_reserved + room.ram_claimed
                assert mib_free(room.ram_free) >= 0
                fresh = before.rooms[room.worker.id]
                assert room.ram_claimed == fresh.ram_claimed or taken <= room.worker.ram_total


def test_the_account_says_how_many_had_room_and_why_this_one() -> None:
    fleet = Fleet([a_worker(1, 24), a_worker(2, 24), a_worker(3, 8), a_worker(4, 24, ready=False)])
    request = a_request(1, 10, local=frozenset({2}))
    answer = fleet.place(request)
    assert isinstance(answer, Placed)
    told = account(fleet, request, answer)
    assert (told.workers, told.with_room) == (4, 2)
    assert told.reasons[0] == "2 of 3 possible workers had enough free memory"
    assert told.reasons[-1] == "the files are on that worker's disk already"
    ready = next(each for each in told.steps if each.name == "are ready")
    assert (ready.matched, ready.asked) == (3, 4)


def test_the_account_tells_who_came_last() -> None:
    fleet = Fleet([a_worker(1, 24), a_worker(2, 24)])
    request = a_request(1, 10, avoid=frozenset({1}))
    answer = fleet.place(request)
    assert isinstance(answer, Placed)
    assert answer.worker_id == 2
    reasons = account(fleet, request, answer).reasons
    assert "worker worker-1 came last, since it was not started there before" in reasons
