"""How an engine's life ends, and goes on under another worker."""

import pytest

from gpustack.lifecycle.engine import (
    Adopted,
    Answered,
    Assigned,
    AwaitIdle,
    Drained,
    Draining,
    EngineLife,
    EngineLimits,
    Event,
    Exited,
    Failed,
    Installed,
    Instruction,
    Kill,
    Report,
    RestartAfter,
    RestartDue,
    Resumed,
    Silent,
    StartTimedOut,
    Withdrawn,
    step,
)
from gpustack.schemas import InstanceState

LIMITS = EngineLimits()
S = InstanceState


def walk(*events: Event, life: EngineLife | None = None) -> tuple[EngineLife, tuple[Instruction, ...]]:
    life, instructions = life or EngineLife(), ()
    for event in events:
        life, instructions = step(life, event, LIMITS)
    return life, instructions


STARTING = walk(Assigned(), Installed())[0]
RUNNING = walk(Answered(), life=STARTING)[0]


class TestDraining:
    @pytest.mark.parametrize("life", [STARTING, RUNNING, walk(Adopted())[0]])
    def test_its_clients_are_waited_for(self, life: EngineLife) -> None:
        life, todo = walk(Draining(120), life=life)
        assert todo == (AwaitIdle(120),)

        life, todo = walk(Drained(), life=life)
        assert todo == (Kill(), Report(life.state, ended=True))
        assert life.withdrawn

    @pytest.mark.parametrize("state", [S.SCHEDULED, S.INITIALIZING, S.DOWNLOADING, S.ERROR])
    def test_without_a_process_there_is_nothing_to_wait_for(self, state: InstanceState) -> None:
        life, todo = walk(Draining(120), life=EngineLife(state=state))

        assert todo == (Kill(), Report(state, ended=True))
        assert life.withdrawn

    @pytest.mark.parametrize("event", [Exited("was killed"), Failed("a defect")])
    def test_one_that_dies_is_not_started_again(self, event: Event) -> None:
        life, todo = walk(Draining(120), event, life=RUNNING)

        assert todo == (Kill(), Report(S.RUNNING, ended=True))
        assert life.withdrawn

    @pytest.mark.parametrize(
        "event", [Silent(), Answered(5), RestartDue(), StartTimedOut(600), Assigned(), Draining(1)]
    )
    def test_nothing_else_matters(self, event: Event) -> None:
        before = walk(Draining(120), life=RUNNING)[0]

        assert walk(event, life=before) == (before, ())

    def test_taken_away_it_ends_at_once(self) -> None:
        life, todo = walk(Draining(120), Withdrawn(), life=RUNNING)

        assert todo == (Kill(),)
        assert life.withdrawn


class TestUnderAnotherWorker:
    def test_it_goes_on_waiting_for_its_restart(self) -> None:
        life, todo = walk(Resumed(4, 33.0, "it failed; trying again in 80 s"))

        assert todo == (Report(S.ERROR, "it failed; trying again in 80 s"), RestartAfter(33.0))
        assert life.failures == 4
        assert walk(RestartDue(), life=life)[1][0] == Report(
            S.INITIALIZING, "restart 4 after an error", restarted=True
        )

    @pytest.mark.parametrize(("seconds", "wait"), [(1e9, 300.0), (-5.0, 0.0)])
    def test_never_for_longer_than_any_restart(self, seconds: float, wait: float) -> None:
        assert RestartAfter(wait) in walk(Resumed(9, seconds, "it failed"))[1]

    def test_one_that_ended_while_nobody_watched_counts_as_failed(self) -> None:
        exited = Exited("ended while no worker watched it", "last words")
        life, todo = walk(exited)

        assert todo[0] == Kill()
        assert isinstance(todo[1], Report)
        assert todo[1].message.startswith("the engine ended while no worker watched it; trying again now\n")
        assert todo[2] == RestartAfter(0.0)
        assert life.failures == 1

        assert len(walk(exited, life=EngineLife(restarts=False))[1]) == 2


def test_a_wrong_parameter_is_tried_ever_more_rarely_and_says_when() -> None:
    life, waits, said = EngineLife(), [], []
    life = walk(Assigned(), life=life)[0]
    for _ in range(9):
        life, todo = walk(Installed(), Exited("exited with status 1"), life=life)
        waits += [each.seconds for each in todo if isinstance(each, RestartAfter)]
        said += [each.message for each in todo if isinstance(each, Report)]
        life = walk(RestartDue(), life=life)[0]

    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]
    assert said[0] == "the engine exited with status 1 while loading the model; trying again now"
    assert said[-1] == "the engine exited with status 1 while loading the model; trying again in 300 s"
