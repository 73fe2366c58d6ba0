"""The GPUs that llama.cpp gets, from the model's files to the plan: the real backend, questions and scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB, MIB
from gpustack.plugin import EstimateRequest, LaunchRequest
from gpustack.scheduling import Placed
from gpustack.scheduling.account import account
from gpustack.schemas import Claim, FactsDocument, InstanceState
from gpustack.server.reconcile.actions import Ask, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.placing import anew
from gpustack.server.reconcile.questions import ask, devices_of, facts_of
from gpustack.server.reconcile.state import State
from gpustack.testing.fleet import fleet
from support.engine import llama_cpp_backend
from support.reconcile import a_file, a_model, a_state, an_instance

S = InstanceState
LAYERS = 16
BACKENDS = {"llama-cpp": (llama_cpp_backend(Path("unused")), "backends")}


def a_llama(layer: int = 1024, head: int = 2048) -> FactsDocument:
    """Return a model whose layers, and whose output head, take so many MiB."""
    return FactsDocument(
        format="gguf",
        path="/models/tiny.gguf",
        weight_bytes=(LAYERS * layer + 2 * head) * MIB,
        architecture="llama",
        context_length=8192,
        layers=LAYERS,
        hidden_size=2048,
        attention_heads=16,
        kv_heads=4,
        key_length=128,
        value_length=128,
        vocabulary=32000,
        categories=("llm",),
        layer_bytes=[layer * MIB] * LAYERS,
        output_bytes=head * MIB,
        embedding_bytes=head * MIB,
    )


def a_fleet(free: Sequence[Sequence[int]], facts: FactsDocument, *parameters: str) -> State:
    """Return workers with GPUs of 48 GiB, of which so many MiB are free."""
    lines = ["workers:"]
    for number, gpus in enumerate(free, 1):
        lines.append(f"  - {{name: box-{number}, ram: 256GiB, reserved_vram: 0, backends: [llama-cpp],")
        lines.append(f"     gpus: [{{name: NVIDIA H100, memory: 48GiB, count: {len(gpus)}}}]}}")
    workers = [each.public(number) for number, each in enumerate(fleet("\n".join(lines)), 1)]
    taken = [
        an_instance(
            100 + number,
            S.RUNNING,
            model_id=2,
            worker_id=number,
            computed_resource_claim=Claim(vram={at: 48 * GIB - mib * MIB for at, mib in enumerate(gpus)}),
        )
        for number, gpus in enumerate(free, 1)
    ]
    state = a_state(
        models=[a_model(backend_parameters=list(parameters)), a_model(2, replicas=len(taken))],
        instances=[an_instance(1, S.ANALYZING, spec_digest=""), *taken],
        workers=workers,
        files=[a_file(each.id, facts=facts) for each in workers],
    )
    state.versions = {"llama-cpp": "1"}
    return state


def decided(state: State) -> Placed:
    """Answer what is asked as the server does, and return where the model goes."""
    for _ in range(4):
        actions = decide(state, 0.0)
        asked = [each for action in actions if isinstance(action, Ask) for each in action.questions]
        if not asked:
            (schedule,) = [each for each in actions if isinstance(each, Schedule)]
            return schedule.placed
        state.answers.update({each: asyncio.run(ask(each, BACKENDS, 0.0)) for each in asked})
    raise AssertionError("it goes on asking")


def sizes(facts: FactsDocument) -> tuple[int, int, int]:
    """Return what each GPU, each layer and the output head take, from estimates for one GPU alone."""
    (one,) = [
        devices_of(each.public(1))
        for each in fleet("workers: [{name: box, gpus: [{name: H100, memory: 48GiB}]}]")
    ]

    def on(layers: int) -> int:
        request = EstimateRequest(
            model=facts_of(facts), version="1", parameters=(f"-ngl={layers}",), devices=one
        )
        return int(BACKENDS["llama-cpp"][0].estimate(request).vram)

    head = facts_of(facts).output_bytes
    return on(1) - head, -(-(on(LAYERS + 1) - on(1)) // LAYERS), head


def divisions(pieces: int, gpus: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to give each of the GPUs one or more of the pieces."""
    for cuts in combinations(range(1, pieces), gpus - 1):
        ends = (0, *cuts, pieces)
        yield tuple(after - before for before, after in pairwise(ends))


def fewest(free: Sequence[int], pieces: int, each: int, layer: int, head: int) -> int | None:
    """Return the least number of GPUs that hold the last so many layers, by trying all; None when none do."""
    for count in range(1, len(free) + 1):
        for some in combinations(free, count):
            for division in divisions(pieces, count):
                needed = [each + number * layer for number in division]
                needed[-1] += head - layer
                if all(-(-size // MIB) <= mib for size, mib in zip(needed, some, strict=True)):
                    return count
    return None


GPUS = st.lists(st.integers(0, 14).map(lambda some: some * 1536), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(free=st.lists(GPUS, min_size=1, max_size=3), layer=st.integers(300, 2200))
def test_what_fits_on_some_gpus_of_a_worker_is_placed_on_the_fewest(
    free: list[list[int]], layer: int
) -> None:
    facts = a_llama(layer, head=layer + 700)
    each, one, head = sizes(facts)

    placed = decided(a_fleet(free, facts))

    whole = [found for gpus in free if (found := fewest(gpus, LAYERS + 1, each, one, head)) is not None]
    here = free[placed.worker_id - 1]
    assert all(-(-size // MIB) <= here[at] for at, size in placed.vram.items()), "over capacity"
    if whole:
        assert not placed.way.claim.partial
        assert len(placed.vram) == min(whole)
        return
    steps = [(LAYERS + 1) * step // 8 for step in range(1, 8)]
    some = [n for n in steps if n and any(fewest(gpus, n, each, one, head) for gpus in free)]
    assert sum(placed.pieces.values()) == max(some, default=0)
    assert bool(placed.vram) == bool(some)


def test_a_small_model_takes_the_free_one_of_four_gpus() -> None:
    placed = decided(a_fleet([[100, 100, 48 * 1024, 100]], a_llama(10, 20)))

    assert [*placed.vram] == [2]
    assert placed.way.claim.gpus == 1


def test_gpus_that_differ_get_shares_as_they_have_room() -> None:
    state = a_fleet([[0, 6500, 17500, 0]], a_llama())
    placed = decided(state)

    assert [*placed.vram] == [1, 2]
    assert placed.pieces[2] > 2 * placed.pieces[1]
    assert sum(placed.pieces.values()) == LAYERS + 1
    assert launched(state, placed).endswith(
        f"--gpu-layers {LAYERS + 1} --tensor-split {placed.pieces[1]},{placed.pieces[2]}"
    )


def test_with_too_little_room_some_layers_stay_in_ram() -> None:
    state = a_fleet([[9000]], a_llama())
    placed = decided(state)

    (layers,) = placed.pieces.values()
    assert 1 <= layers < LAYERS
    assert placed.ram > (LAYERS - layers) * GIB
    assert launched(state, placed).endswith(f"--gpu-layers {layers}")


def launched(state: State, placed: Placed) -> str:
    """Return the command line of the engine as its worker makes it."""
    devices = devices_of(state.workers[placed.worker_id])
    backend, _ = BACKENDS["llama-cpp"]
    plan = backend.launch(
        LaunchRequest(
            instance_name="one",
            model_name="tiny",
            model=facts_of(a_llama()),
            command="engine",
            version="1",
            host="127.0.0.1",
            port=1,
            model_path="/m",
            devices=tuple(devices[index] for index in sorted(placed.vram)),
            pieces=tuple(placed.pieces[index] for index in sorted(placed.vram)) if placed.pieces else (),
        )
    )
    return " ".join(plan.argv)


@pytest.mark.parametrize(
    ("parameters", "gpus", "pieces"),
    [
        (("--gpu-layers=99",), 0, 0),
        (("--gpu-layers=6",), 1, 0),
        (("-ngl=0",), 0, 0),
        (("--tensor-split=3,1",), 0, 0),
        (("-ngl=8", "--tensor-split=3,1"), 2, 0),
        (("-ngl=6", "--split-mode=none"), 1, 0),
    ],
)
def test_what_the_user_says_of_layers_and_shares_is_kept_to(
    parameters: tuple[str, ...], gpus: int, pieces: int
) -> None:
    placed = decided(a_fleet([[9000, 9000]], a_llama(), *parameters))

    assert (len(placed.vram), sum(placed.pieces.values())) == (gpus, pieces)


def reasons(state: State) -> list[str]:
    placed = decided(state)
    requests, _ = anew(state, [state.instances[1]], 0.0)
    return list(account(state.fleet, requests[1], placed).reasons)


def test_a_copy_on_the_processor_says_why_it_has_no_gpu() -> None:
    said = reasons(a_fleet([[100, 900], [0]], a_llama()))

    assert "it runs on the processor: no worker had enough free GPU memory for all of it" in said
    assert said[-1].startswith("nearest was box-1: needs ")
    assert "on GPU 1, 900.0 MiB of 48.0 GiB is free" in said[-1]


def test_a_copy_without_gpus_by_its_own_parameters_says_so() -> None:
    said = reasons(a_fleet([[40000]], a_llama(), "-ngl=0"))
    assert any("although there are GPUs" in each for each in said), said


def test_a_copy_with_a_part_in_ram_says_so() -> None:
    said: Any = reasons(a_fleet([[9000]], a_llama()))
    assert any("a part of it is in RAM" in each and "on GPUs" in each for each in said), said
