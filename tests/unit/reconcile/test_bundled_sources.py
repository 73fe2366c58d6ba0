"""A model that a plugin carries is read and served where the plugin is, and nowhere else is asked."""

from __future__ import annotations

from typing import Any

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import InstanceState, ModelFileState, Source, source_key
from gpustack.server.reconcile.actions import Analyze, Ask, Fail, Restart, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer
from support.reconcile import a_file, a_model, a_state, a_worker, an_instance

S = InstanceState
MODEL = a_model(source=Source.BUNDLED, local_path="", bundled_name="demo")


def worker(number: int, *models: str) -> Any:
    return a_worker(number, catalogue={"backends": ["obedient"], "bundled_models": [*models]})


def file(number: int, state: ModelFileState = ModelFileState.READY) -> Any:
    source = {
        "source": Source.BUNDLED,
        "local_path": "",
        "bundled_name": "demo",
        "source_key": source_key(MODEL),
    }
    return a_file(number, state, **source)


def instance(state: InstanceState, **more: Any) -> Any:
    return an_instance(1, state, spec_digest=MODEL.spec_digest, **more)


def test_only_workers_with_the_plugin_are_asked() -> None:
    old = a_worker(3)  # of a version that knows of no bundled models
    state = a_state(
        models=[MODEL], instances=[instance(S.PENDING)], workers=[worker(1, "other"), worker(2, "demo"), old]
    )

    assert decide(state, 0) == [Analyze(1, (2,), (2,))]


def test_it_is_placed_there_without_waiting_for_the_others() -> None:
    state = a_state(
        models=[MODEL],
        instances=[instance(S.ANALYZING)],
        workers=[worker(1), worker(2, "demo"), a_worker(3)],
        files=[file(2)],
    )
    (ask,) = (each for each in decide(state, 0) if isinstance(each, Ask))
    for question in ask.questions:
        state.answers[question] = Answer(claim=ResourceClaim(ram=GIB))
    (placed,) = (each for each in decide(state, 0) if isinstance(each, Schedule))
    assert placed.placed.worker_id == 2


def test_when_nobody_has_it_the_line_says_what_to_install() -> None:
    state = a_state(models=[MODEL], instances=[instance(S.PENDING)], workers=[worker(1, "other")])

    (fail,) = decide(state, 0)
    assert isinstance(fail, Fail)
    assert fail.message.splitlines()[0] == (
        "no worker can serve model tiny: worker-1: has no plugin that brings the model demo; install it there"
    )


def test_a_worker_that_gets_the_plugin_is_a_new_attempt() -> None:
    state = a_state(models=[MODEL], instances=[instance(S.ERROR)], workers=[worker(1)])
    assert decide(state, 0) == []

    state.put_worker(worker(1, "demo"), 1)
    assert decide(state, 1) == [Restart(1, "another worker is ready; trying again")]
