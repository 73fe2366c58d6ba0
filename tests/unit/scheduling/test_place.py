"""Placing: the right worker by strategy, never over capacity, and every refusal with its reason."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
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
    Snapshot,
    Way,
    Worker,
    explain,
    others_use,
    place,
)
from gpustack.schemas import PlacementStrategy


def a_worker(number: int, ram: int = 24, *, gpus: tuple[int, ...] = (), **more: object) -> Worker:
    values: dict[str, object] = {
        "id": number,
        "name": f"worker-{number}",
        "cluster_id": 1,
        "ready": True,
        "backends": frozenset({"llama.cpp"}),
        "ram_total": ram * GIB,
        "gpus": tuple(Gpu(index=i, uuid=f"{number}-{i}", total=size * GIB) for i, size in enumerate(gpus)),
    }
    return Worker(**{**values, **more})


def way(ram: int, vram: int = 0, gpus: int = 0) -> Way:
    return Way(
        backend="llama.cpp", version="1", claim=ResourceClaim(ram=ram * GIB, vram=vram * GIB, gpus=gpus)
    )


def a_request(*ways: Way, workers: int = 9, **more: object) -> Request:
    ids = range(1, workers + 1)
    values: dict[str, object] = {
        "instance_id": 100,
        "model_id": 10,
        "model_name": "tiny",
        "cluster_id": 1,
        "files": {each: FilesThere(ready=True) for each in ids},
        "offers": {each: Offer(ways=ways) for each in ids},
    }
    return Request(**{**values, **more})


def held(worker: int, ram: int = 0, *, model: int = 1, instance: int = 1, **vram: int) -> Holding:
    return Holding(
        instance_id=instance,
        model_id=model,
        worker_id=worker,
        ram=ram * GIB,
        vram={int(key[1:]): size * GIB for key, size in vram.items()},
    )


def where(snapshot: Snapshot, request: Request) -> int | None:
    answer = place(snapshot, request)
    return answer.worker_id if isinstance(answer, Placed) else None


def test_spread_takes_the_worker_with_fewer_of_the_model_then_fewer_instances_then_more_memory() -> None:
    snapshot = Snapshot.of([a_worker(1), a_worker(2), a_worker(3)])
    snapshot = snapshot.hold(held(1, 1, model=10)).hold(held(2, 1, model=11, instance=2))

    assert where(snapshot, a_request(way(2))) == 3
    assert where(snapshot.hold(held(3, 1, model=10, instance=3)), a_request(way(2))) == 2
    assert where(Snapshot.of([a_worker(1, 8), a_worker(2, 16)]), a_request(way(2))) == 2


def test_binpack_takes_the_fullest_that_fits() -> None:
    snapshot = Snapshot.of([a_worker(1), a_worker(2), a_worker(3)], [held(2, 12), held(3, 20, instance=2)])

    assert where(snapshot, a_request(way(8), strategy=PlacementStrategy.BINPACK)) == 2


def test_equal_workers_are_told_apart_by_id() -> None:
    assert where(Snapshot.of([a_worker(3), a_worker(2), a_worker(7)]), a_request(way(1))) == 2


def test_a_gpu_is_better_than_the_cpu_and_the_cpu_better_than_nothing() -> None:
    snapshot = Snapshot.of([a_worker(1, 64), a_worker(2, 16, gpus=(8,))])
    both = a_request(way(1, vram=6, gpus=1), way(6))

    assert place(snapshot, both) == Placed(
        instance_id=100, model_id=10, worker_id=2, way=way(1, 6, 1), ram=GIB, vram={0: 6 * GIB}
    )
    assert where(snapshot.hold(held(2, g0=4)), both) == 1


@pytest.mark.parametrize(
    ("strategy", "chosen"), [(PlacementStrategy.SPREAD, {1, 3}), (PlacementStrategy.BINPACK, {0, 2})]
)
def test_gpus_are_chosen_by_strategy(strategy: PlacementStrategy, chosen: set[int]) -> None:
    snapshot = Snapshot.of([a_worker(1, gpus=(24, 24, 24, 24))], [held(1, g0=12, g2=6)])

    answer = place(snapshot, a_request(way(1, vram=20, gpus=2), strategy=strategy))

    assert isinstance(answer, Placed)
    assert set(answer.vram) == chosen
    assert set(answer.vram.values()) == {10 * GIB}


def test_a_worker_to_avoid_is_taken_only_when_there_is_no_other() -> None:
    request = a_request(way(1), avoid=frozenset({1}))

    assert where(Snapshot.of([a_worker(1), a_worker(2, 4)]), request) == 2
    assert where(Snapshot.of([a_worker(1)]), request) == 1


def test_gpus_that_share_the_processors_memory_take_from_both() -> None:
    snapshot = Snapshot.of([a_worker(1, 24, gpus=(24,), unified_memory=True)])

    assert where(snapshot, a_request(way(4, vram=20, gpus=1))) == 1
    assert where(snapshot, a_request(way(5, vram=20, gpus=1))) is None
    assert where(snapshot.hold(held(1, g0=10)), a_request(way(15))) is None


def test_release_and_a_changed_worker_make_room() -> None:
    full = Snapshot.of([a_worker(1, 8)], [held(1, 6)])

    assert where(full, a_request(way(4))) is None
    assert where(full.release(1), a_request(way(4))) == 1
    assert where(full.with_worker(a_worker(1, 16)), a_request(way(4))) == 1
    assert full.rooms[1].ram_free == 2 * GIB, "a snapshot itself never changes"


def test_others_use_is_what_running_claims_do_not_account_for() -> None:
    assert others_use(10, 4) == 6
    assert others_use(3, 4) == 0


def test_a_refusal_says_what_is_missing_where() -> None:
    worker = a_worker(1, 24, name="worker-a", ram_reserved=2 * GIB, ram_others=GIB)
    refused = place(Snapshot.of([worker], [held(1, 13)]), a_request(way(12)))

    assert isinstance(refused, Refused)
    assert refused.for_room_only
    assert explain(refused) == [
        (
            "waiting for room: no worker has enough free memory now: "
            "worker-a: needs 12.0 GiB RAM, 8.0 GiB of 24.0 GiB is free "
            "(2.0 GiB reserved, 13.0 GiB claimed, 1.0 GiB used by others)"
        )
    ]


@pytest.mark.parametrize("claim", [way(23), way(1, vram=50, gpus=2), way(1, vram=8, gpus=3)])
def test_what_no_worker_could_ever_hold_is_not_said_to_wait_for_room(claim: Way) -> None:
    worker = a_worker(1, 24, ram_reserved=2 * GIB, gpus=(24, 24))
    refused = place(Snapshot.of([worker], []), a_request(claim))

    assert isinstance(refused, Refused)
    assert explain(refused)[0].startswith("no worker is large enough, even when empty: worker-1: needs ")


def test_a_refusal_names_the_nearest_gpus_and_the_missing_ones() -> None:
    snapshot = Snapshot.of(
        [a_worker(1, gpus=(24, 24, 8)), a_worker(2, gpus=(8,))], [held(1, g0=20, g1=16, instance=5)]
    )
    refused = place(snapshot, a_request(way(1, vram=20, gpus=2)))

    assert isinstance(refused, Refused)
    lines = explain(refused)
    assert lines[1:] == [
        "worker-2: needs 2 GPUs, has 1; needs 10.0 GiB on GPU 0, 8.0 GiB of 8.0 GiB is free",
        (
            "worker-1: needs 10.0 GiB on GPU 1, 8.0 GiB of 24.0 GiB is free (16.0 GiB claimed); "
            "needs 10.0 GiB on GPU 2, 8.0 GiB of 8.0 GiB is free"
        ),
    ]


FILTERED = {
    "cluster": ({"cluster_id": 2}, {}, "is in another cluster"),
    "selector": ({"labels": {"zone": "b"}}, {"selector": {"zone": "a"}}, "lacks the label zone=a"),
    "ready": ({"ready": False, "state_message": "leaving"}, {}, "is not ready: leaving"),
    "files unknown": ({}, {"files": {}}, "has not looked for the model's files yet"),
    "files": ({}, {"files": {1: FilesThere(ready=False, reason="no such file")}}, "no such file"),
    "backend": ({"backends": frozenset()}, {}, "has not the backend llama.cpp installed"),
    "platform": (
        {},
        {"offers": {1: Offer(platform_refusals=("llama.cpp: no build for windows",))}},
        "llama.cpp: no build for windows",
    ),
    "model": ({}, {"offers": {1: Offer(refusals=("llama.cpp: GGUF only",))}}, "llama.cpp: GGUF only"),
}


@pytest.mark.parametrize("kind", FILTERED)
def test_each_filter_leaves_a_reason(kind: str) -> None:
    worker, request, reason = FILTERED[kind]
    refused = place(Snapshot.of([a_worker(1, **worker)]), a_request(way(1), **request))

    assert isinstance(refused, Refused)
    assert not refused.for_room_only
    assert refused.reasons == {1: reason}
    assert explain(refused) == [f"no worker can take it now: worker-1: {reason}"]


def test_a_large_fleet_is_counted_by_filter_and_the_nearest_are_named() -> None:
    workers = [a_worker(n, n, labels={"zone": "a" if n <= 20 else "b"}) for n in range(1, 31)]
    refused = place(Snapshot.of(workers), a_request(way(40), workers=30, selector={"zone": "a"}))

    assert isinstance(refused, Refused)
    lines = explain(refused)
    assert lines[1] == "20 of 30 workers match the worker selector"
    assert lines[2].startswith("worker-20: needs 40.0 GiB RAM")
    assert lines[-1] == "and 22 workers more"


def test_without_workers_it_says_so() -> None:
    refused = place(Snapshot.of([]), a_request(way(1)))

    assert isinstance(refused, Refused)
    assert explain(refused) == ["no worker has joined yet; start one, or look at `gpustack workers`"]


SIZES = st.integers(0, 6)
FLEETS = st.lists(st.tuples(st.integers(1, 8), st.lists(st.integers(1, 6), max_size=3)), max_size=4)
CLAIMS = st.lists(st.tuples(SIZES, st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=8)


@given(fleet=FLEETS, claims=CLAIMS, strategy=st.sampled_from(PlacementStrategy))
def test_never_over_capacity_and_never_refused_while_something_fits(
    fleet: list[tuple[int, list[int]]], claims: list[tuple[int, int, int]], strategy: PlacementStrategy
) -> None:
    workers = [a_worker(n, ram, gpus=tuple(gpus)) for n, (ram, gpus) in enumerate(fleet, 1)]
    snapshot = Snapshot.of(workers)
    for number, (ram, vram, gpus) in enumerate(claims):
        one = way(ram, vram if gpus else 0, gpus)
        request = replace(a_request(one, strategy=strategy), instance_id=number)

        answer = place(snapshot, request)

        assert answer == place(Snapshot.of(reversed(workers), _holdings(snapshot)), request)
        assert isinstance(answer, Placed) == _fits_somewhere(snapshot, one.claim)
        if isinstance(answer, Placed):
            snapshot = snapshot.hold(answer.holding())
            assert len(answer.vram) == gpus
            assert sum(answer.vram.values()) >= one.claim.vram
    for room in snapshot.rooms.values():
        assert room.ram_claimed <= room.worker.ram_total
        assert all(room.vram_claimed.get(gpu.index, 0) <= gpu.total for gpu in room.worker.gpus)


def _holdings(snapshot: Snapshot) -> list[Holding]:
    return [each for room in snapshot.rooms.values() for each in room.holdings]


def _fits_somewhere(snapshot: Snapshot, claim: ResourceClaim) -> bool:
    """Try every set of GPUs on every worker."""
    for room in snapshot.rooms.values():
        taken = {gpu.index: sum(h.vram.get(gpu.index, 0) for h in room.holdings) for gpu in room.worker.gpus}
        if room.worker.ram_total - sum(h.ram for h in room.holdings) < claim.ram:
            continue
        for chosen in combinations(room.worker.gpus, claim.gpus):
            if all(claim.vram <= claim.gpus * (gpu.total - taken[gpu.index]) for gpu in chosen):
                return True
    return False
