"""Numbers that no machine has: they decide nothing for others, and never raise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpustack.kit.text import GIB, MIB, MOST_MEMORY
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
    place,
)
from gpustack.scheduling.fleet import Fleet
from gpustack.schemas import PlacementStrategy

SIZES = st.one_of(
    st.integers(0, 80 * GIB),
    st.integers(0, 100).map(lambda power: 1 << power),
    st.sampled_from([MOST_MEMORY - MIB, MOST_MEMORY, MOST_MEMORY + MIB, (1 << 31) * MIB, 10**29]),
)


@st.composite
def workers(draw: st.DrawFn) -> list[Worker]:
    return [
        Worker(
            id=number,
            name=f"worker-{number}",
            cluster_id=1,
            ready=True,
            backends=frozenset({"vllm"}),
            ram_total=draw(SIZES),
            ram_others=draw(SIZES),
            vram_reserved=draw(SIZES),
            unified_memory=draw(st.booleans()),
            gpus=tuple(
                Gpu(index=i, uuid="", total=draw(SIZES), others=draw(SIZES), island=0)
                for i in range(draw(st.integers(0, 3)))
            ),
        )
        for number in (1, 2)
    ]


@st.composite
def claims(draw: st.DrawFn) -> ResourceClaim:
    gpus = draw(st.integers(0, 4))
    return ResourceClaim(ram=draw(SIZES), vram=draw(SIZES) if gpus else 0, gpus=gpus)


def a_request(claim: ResourceClaim, strategy: PlacementStrategy, members: int = 1) -> Request:
    way = Way(backend="vllm", version="1", claim=claim, followers=(claim,) * (members - 1))
    return Request(
        instance_id=1,
        model_id=1,
        model_name="model",
        cluster_id=1,
        strategy=strategy,
        files_elsewhere=FilesThere(ready=True),
        kinds={"": Offer(ways=(way,))},
    )


@given(some=workers(), claim=claims(), held=SIZES, strategy=..., members=st.integers(1, 2))
def test_they_are_decided_as_by_a_look_at_every_worker(
    some: list[Worker], claim: ResourceClaim, held: int, strategy: PlacementStrategy, members: int
) -> None:
    fleet = Fleet(some, [Holding(instance_id=9, model_id=9, worker_id=1, ram=held, vram={0: held})])
    request = a_request(claim, strategy, members)
    answer = fleet.place(request)
    wanted = place(fleet.snapshot(), request)
    assert answer == wanted
    if isinstance(answer, Refused):
        assert explain(answer) == explain(wanted)  # type: ignore[arg-type]


def test_what_no_machine_has_fits_nowhere_and_leaves_the_others_alone() -> None:
    monster = Worker(
        id=1,
        name="monster",
        cluster_id=1,
        ready=True,
        backends=frozenset({"vllm"}),
        ram_total=4 * 10**18,
        gpus=(Gpu(index=0, uuid="", total=10**30),),
    )
    fleet = Fleet([monster])
    boom = a_request(ResourceClaim(ram=10**29), PlacementStrategy.SPREAD)
    assert isinstance(fleet.place(boom), Refused)
    small = a_request(ResourceClaim(ram=GIB, vram=GIB, gpus=1), PlacementStrategy.SPREAD)
    assert isinstance(fleet.place(small), Placed)
