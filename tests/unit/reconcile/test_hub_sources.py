"""Models from a hub: one worker is asked, all replicas load one commit, and what the hub says is passed on."""

from __future__ import annotations

from typing import Any

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.schemas import InstanceState, ModelFilePublic, ModelFileState, ModelPublic, Source, source_key
from gpustack.server.reconcile.actions import Action, Analyze, Ask, Fail, Move, Restart, Schedule
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.questions import Answer
from gpustack.server.reconcile.state import State
from support.reconcile import FACTS, a_file, a_model, a_state, a_worker, an_instance

S = InstanceState
OLD, NEW = "a" * 40, "b" * 40
HUB: dict[str, Any] = {"source": Source.HUGGINGFACE, "local_path": "", "huggingface_repo_id": "org/name"}


def hub_model(number: int = 1, **more: Any) -> ModelPublic:
    return a_model(number, **{**HUB, **more})


def hub_file(
    worker: int = 1, state: ModelFileState = ModelFileState.ANALYZED, **more: Any
) -> ModelFilePublic:
    known = state in (ModelFileState.ANALYZED, ModelFileState.READY, ModelFileState.DOWNLOADING)
    values = {"facts": FACTS if known else None, "resolved_revision": NEW if known else ""}
    return a_file(worker, state, source_key=source_key(hub_model()), **{**HUB, **values, **more})


def waiting(number: int = 1, state: InstanceState = S.PENDING, **more: Any) -> Any:
    return an_instance(number, state, spec_digest=hub_model().spec_digest, **more)


def placed(number: int, revision: str) -> Any:
    return waiting(number, S.STARTING, worker_id=1, resolved_revision=revision)


def answered(state: State, now: float = 0.0) -> list[Action]:
    actions = decide(state, now)
    for action in actions:
        if isinstance(action, Ask):
            for question in action.questions:
                state.answers[question] = Answer(claim=ResourceClaim(ram=GIB))
            return answered(state, now)
    return actions


def test_of_many_workers_one_is_asked_for_all_replicas() -> None:
    workers = [a_worker(n) for n in range(1, 501)]
    state = a_state(models=[hub_model(replicas=2)], workers=workers, instances=[waiting(1), waiting(2)])
    assert decide(state, 0) == [Analyze(1, (1,), (1,)), Analyze(2, (1,), ())]


def test_what_one_worker_found_counts_for_all_and_its_commit_is_kept() -> None:
    state = a_state(
        models=[hub_model(replicas=2)],
        workers=[a_worker(1, ram=1), a_worker(2), a_worker(3)],
        instances=[waiting(1, S.ANALYZING), waiting(2, S.ANALYZING)],
        files=[hub_file(1, state_message="Q4_K_M chosen")],
    )
    for notes in state.notes.values():
        notes.asked.add(1)
    one, two = (each for each in answered(state) if isinstance(each, Schedule))
    assert {one.placed.worker_id, two.placed.worker_id} == {2, 3}
    assert (one.revision, one.note, one.path) == (NEW, "Q4_K_M chosen", "")
    assert two.revision == NEW


def test_later_replicas_load_the_commit_of_the_first_without_asking() -> None:
    state = a_state(
        models=[hub_model(replicas=2)],
        workers=[a_worker()],
        instances=[placed(1, NEW), waiting(2)],
        files=[hub_file()],
    )
    (action,) = answered(state)
    assert isinstance(action, Schedule)
    assert action.revision == NEW


def test_that_commit_is_asked_for_when_nobody_knows_it_any_more() -> None:
    state = a_state(
        models=[hub_model(replicas=2)],
        workers=[a_worker(1), a_worker(2)],
        instances=[placed(1, OLD), waiting(2)],
        files=[hub_file(2, resolved_revision=NEW)],
    )
    assert decide(state, 0) == [Analyze(2, (2,), (2,), OLD)]


def test_a_model_that_moves_to_another_revision_is_not_held_to_the_old_commit() -> None:
    moved = hub_model(replicas=2, huggingface_revision="v2")
    state = a_state(
        models=[moved], workers=[a_worker()], instances=[placed(1, OLD), waiting(2)], files=[hub_file()]
    )
    asked = [each for each in decide(state, 0) if isinstance(each, Analyze)]
    assert asked == [Analyze(2, (1,), (1,))]


def test_a_model_with_other_parameters_stays_at_its_commit() -> None:
    changed = hub_model(replicas=2, backend_parameters=["--ctx-size=512"])
    state = a_state(
        models=[changed], workers=[a_worker()], instances=[placed(1, NEW), waiting(2)], files=[hub_file()]
    )
    (action,) = (each for each in answered(state) if isinstance(each, Schedule))
    assert action.revision == NEW


def test_without_instances_the_newest_commit_is_asked_for_where_the_files_are() -> None:
    files = [hub_file(1), hub_file(2, ModelFileState.READY)]
    state = a_state(
        models=[hub_model()], workers=[a_worker(1), a_worker(2)], instances=[waiting()], files=files
    )
    assert decide(state, 0) == [Analyze(1, (2,), (2,))]


def test_what_the_worker_waits_for_is_shown_and_keeps_the_instance_alive() -> None:
    said = "the hub answers 503; trying again in 8 s (attempt 3)"
    reading = hub_file(1, ModelFileState.ANALYZING, state_message=said)
    state = a_state(
        models=[hub_model()], workers=[a_worker()], instances=[waiting(1, S.ANALYZING)], files=[reading]
    )
    assert decide(state, 0) == [Move(1, S.ANALYZING, said)]
    state.put_instance(waiting(1, S.ANALYZING, state_message=said), 50)
    state.seen[1] = 111
    assert decide(state, 100) == []
    assert isinstance(decide(state, 111)[0], Fail), "after a minute without news"


def test_a_download_lasts_as_long_as_it_goes_on() -> None:
    state = a_state(
        models=[hub_model()], workers=[a_worker()], instances=[placed(1, NEW)], files=[hub_file()]
    )
    for now in range(0, 5000, 500):
        state.seen[1] = now
        state.put_instance(waiting(1, S.DOWNLOADING, worker_id=1, download_progress=now / 100), now)
        assert decide(state, now) == []
    state.seen[1] = 5500
    (action,) = decide(state, 5500)
    assert isinstance(action, Move)
    assert action.state is S.ERROR
    assert "has not gone on fetching the model's files for 900 s" in action.message


def test_an_error_is_told_as_it_is_and_a_worker_that_joins_later_is_asked() -> None:
    gated = "org/name is gated: accept its licence at https://hub/org/name"
    error = hub_file(1, ModelFileState.ERROR, state_message=gated)
    state = a_state(
        models=[hub_model()], workers=[a_worker(1)], instances=[waiting(1, S.ANALYZING)], files=[error]
    )
    state.notes[1].asked.add(1)
    (action,) = decide(state, 0)
    assert isinstance(action, Fail)
    first, todo = action.message.splitlines()
    assert first == gated
    assert "`gpustack rm tiny`" in todo
    state.put_instance(waiting(1, S.ERROR), 1)
    state.notes[1].tried = action.tried
    assert decide(state, 2) == []
    state.put_worker(a_worker(2), 2)
    assert isinstance(decide(state, 2)[0], Restart)
    state.put_instance(waiting(1), 3)
    assert decide(state, 3) == [Analyze(1, (2,), (2,))], "it may have another token"


def refused(worker: int, why: str = "org/name is gated", **more: Any) -> ModelFilePublic:
    return hub_file(worker, ModelFileState.ERROR, state_message=why, **more)


def test_others_are_asked_one_after_the_other_but_not_all_of_a_fleet() -> None:
    workers = [a_worker(n) for n in range(1, 501)]
    state = a_state(models=[hub_model()], workers=workers, instances=[waiting(1, S.ANALYZING)])
    notes = state.notes[1]
    for asked in (1, 2):
        notes.asked.add(asked)
        state.put_file(refused(asked))
        (action,) = decide(state, 0)
        assert action == Analyze(
            1, (asked + 1,), (asked + 1,), "", "asking another worker: org/name is gated"
        )
    notes.asked.add(3)
    state.put_file(refused(3))
    (action,) = decide(state, 0)
    assert isinstance(action, Fail)
    first, asked_line, _todo = action.message.splitlines()
    assert first == "org/name is gated"
    names = ", ".join(state.workers[n].name for n in (1, 2, 3))
    assert asked_line == f"asked: {names}; 497 more could be, and a new deployment asks others first"
    state.put_instance(waiting(1, S.ERROR), 1)
    state.notes[1].tried = action.tried
    state.put_worker(a_worker(501), 2)
    assert decide(state, 2) == [], "three have heard the same"
    again = a_state(models=[hub_model()], workers=workers, instances=[waiting(1)], files=state.files.values())
    assert decide(again, 0) == [Analyze(1, (4,), (4,))], "a new deployment asks others first"


def test_each_reason_is_told_with_those_that_found_it() -> None:
    files = [refused(1), refused(2, "org/name: no such repository")]
    state = a_state(
        models=[hub_model()],
        workers=[a_worker(1), a_worker(2)],
        instances=[waiting(1, S.ANALYZING)],
        files=files,
    )
    state.notes[1].asked.update((1, 2))
    (action,) = decide(state, 0)
    assert isinstance(action, Fail)
    one, two = (state.workers[n].name for n in (1, 2))
    assert action.message.splitlines()[:2] == [
        f"{one}: org/name is gated",
        f"{two}: org/name: no such repository",
    ]


def test_after_a_restart_of_the_server_an_old_error_does_not_outweigh_known_facts() -> None:
    state = a_state(
        models=[hub_model()],
        workers=[a_worker(1), a_worker(2)],
        instances=[waiting(1, S.ANALYZING)],
        files=[refused(1), hub_file(2)],
    )
    assert [type(each) for each in answered(state)] == [Schedule]


def test_after_a_restart_of_the_server_old_errors_are_not_trusted() -> None:
    state = a_state(
        models=[hub_model()], workers=[a_worker()], instances=[waiting(1, S.ANALYZING)], files=[refused(1)]
    )
    assert decide(state, 0) == [Analyze(1, (1,), (1,))]


def test_another_worker_is_asked_when_the_first_is_lost() -> None:
    reading = hub_file(1, ModelFileState.ANALYZING)
    state = a_state(
        models=[hub_model()], workers=[a_worker(2)], instances=[waiting(1, S.ANALYZING)], files=[reading]
    )
    assert decide(state, 0) == [Analyze(1, (2,), (2,))]


def test_a_failed_download_does_not_make_the_facts_worthless() -> None:
    failed = hub_file(1, ModelFileState.ERROR, facts=FACTS, resolved_revision=NEW)
    state = a_state(
        models=[hub_model(replicas=2)],
        workers=[a_worker()],
        instances=[placed(1, NEW), waiting(2)],
        files=[failed],
    )
    assert [type(each) for each in answered(state)] == [Schedule]
