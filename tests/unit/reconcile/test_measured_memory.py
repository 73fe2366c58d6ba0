"""What earlier starts measured corrects the next placement, and is noted with it."""

from __future__ import annotations

from typing import Any

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.plugin.memory import Learned
from gpustack.schemas import FactsDocument, InstanceMemory, InstanceState
from gpustack.server.reconcile.actions import Ask, Park, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.learned import key_of, memory_key
from gpustack.server.reconcile.questions import Answer, facts_of
from gpustack.server.reconcile.state import State
from support.reconcile import a_file, a_state, a_worker, an_instance

S = InstanceState
ESTIMATE = ResourceClaim(ram=4 * GIB, mapped=GIB)


def placing(*, workers: list[Any] | None = None, peak: Learned | None = None) -> tuple[State, list[Any]]:
    """Return what is decided for an instance whose backend has estimated 4 GiB, when ``peak`` is known."""
    state = a_state(
        instances=[an_instance(1, S.ANALYZING)], files=[a_file()], workers=workers or [a_worker()]
    )
    (ask,) = [each for each in decide(state, 1.0) if isinstance(each, Ask)]
    state.answers.update({each: Answer(claim=ESTIMATE) for each in ask.questions})
    if peak is not None:
        state.peaks.replace({key_of(each, ESTIMATE): peak for each in ask.questions})
    return state, [each for each in decide(state, 1.0) if isinstance(each, Schedule | Park)]


def test_the_first_of_a_kind_claims_the_estimate() -> None:
    _, (schedule,) = placing()

    assert schedule.placed.ram == 4 * GIB
    assert (schedule.memory.estimated_ram, schedule.memory.mapped) == (4 * GIB, GIB)
    assert schedule.memory.peak_ram == 0
    assert len(schedule.memory.arguments) == 32


def test_the_next_claims_what_the_first_took() -> None:
    _, (schedule,) = placing(peak=Learned(ram=6 * GIB, starts=1))

    assert 6 * GIB < schedule.placed.ram < 6.2 * GIB
    assert schedule.memory.estimated_ram == 4 * GIB


def test_what_took_too_much_is_not_placed_where_only_the_estimate_would_fit() -> None:
    small = a_worker(ram=5)

    assert isinstance(placing(workers=[small])[1][0], Schedule)
    assert isinstance(placing(workers=[small], peak=Learned(ram=6 * GIB, starts=1))[1][0], Park)


def test_a_peak_that_an_instance_tells_is_known_at_once() -> None:
    state, (schedule,) = placing()
    instance = an_instance(
        1, S.RUNNING, worker_id=1, backend="obedient", backend_version="1.0", memory=schedule.memory
    )
    state.put_instance(instance, 2.0)

    def took(ram: int) -> None:
        memory = instance.memory.model_copy(update={"peak_ram": ram})
        state.put_instance(instance.model_copy(update={"memory": memory}), 3.0)

    question = next(iter(state.answers))
    took(5 * GIB)
    assert state.peaks.corrected(question, ESTIMATE).ram >= 5 * GIB
    took(6 * GIB)
    assert 6 * GIB <= state.peaks.corrected(question, ESTIMATE).ram < 6.2 * GIB


def test_an_instance_from_before_is_of_no_kind() -> None:
    assert memory_key(an_instance(1, S.RUNNING, memory=InstanceMemory(peak_ram=GIB))) is None


def test_facts_from_json_make_equal_questions() -> None:
    """A question is looked up by its facts; those of two readings are the same."""
    document = FactsDocument(
        format="gguf",
        path="/m",
        weight_bytes=1,
        categories=["llm"],
        layer_bytes=[1, 2],
        bytes_by_type=[["F16", 2], ["F32", 1]],
        newer="field",
    )

    facts = facts_of(document)

    assert facts.bytes_by_type == (("F16", 2), ("F32", 1))
    assert hash(facts) == hash(facts_of(document))
