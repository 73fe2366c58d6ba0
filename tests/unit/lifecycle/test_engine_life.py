"""The life of an engine: each event leads to one next state, and nothing that comes late does harm."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.lifecycle.engine import (
    Adopted,
    Answered,
    Assigned,
    Await,
    EngineLife,
    EngineLimits,
    Event,
    Exited,
    Failed,
    Install,
    Installed,
    Instruction,
    Kill,
    ProbeAfter,
    Report,
    RestartAfter,
    RestartDue,
    Silent,
    Spawn,
    StartTimedOut,
    Withdrawn,
    step,
)
from gpustack.schemas import InstanceState

LIMITS = EngineLimits(start=600, load_rate=1e6, missed_probes=3, backoff=10, backoff_limit=300, stable=60)


def walk(*events: Event, life: EngineLife | None = None) -> tuple[EngineLife, tuple[Instruction, ...]]:
    """Return the life after ``events``, and the instructions of the last one."""
    life, instructions = life or EngineLife(), ()
    for event in events:
        life, instructions = step(life, event, LIMITS)
    return life, instructions


STARTING = walk(Assigned(), Installed())[0]
RUNNING = walk(Answered(), life=STARTING)[0]


def test_the_straight_way() -> None:
    life, todo = walk(Assigned())
    assert life.state is InstanceState.INITIALIZING
    assert [type(each) for each in todo] == [Report, Install]

    life, todo = walk(Installed(), life=life)
    assert life.state is InstanceState.STARTING
    assert [type(each) for each in todo] == [Report, Spawn, ProbeAfter]

    life, todo = walk(Answered(), life=life)
    assert life.state is InstanceState.RUNNING
    assert todo == (Report(InstanceState.RUNNING), ProbeAfter(LIMITS.probe_running))


def test_loading_may_take_longer_the_more_there_is_to_load() -> None:
    _, todo = walk(Assigned(), Installed(), life=EngineLife(weight_bytes=100_000_000))

    assert Spawn(seconds=700) in todo


def test_an_adopted_engine_is_probed_at_once_and_not_for_ever() -> None:
    life, todo = walk(Adopted())

    assert todo == (Await(600), ProbeAfter(0.0))
    assert walk(Answered(), life=life)[1][0] == Report(InstanceState.RUNNING)
    assert Kill() in walk(StartTimedOut(600), life=life)[1]


def test_a_running_engine_is_reported_once() -> None:
    assert walk(Answered(5), life=RUNNING)[1] == (ProbeAfter(LIMITS.probe_running),)


def test_some_silence_is_forgiven_and_too_much_is_not() -> None:
    life, todo = walk(Silent(), Silent(), Answered(5), Silent(), Silent(), life=RUNNING)
    assert life.state is InstanceState.RUNNING

    life, todo = walk(Silent("last words"), life=life)
    assert life.state is InstanceState.ERROR
    assert todo[0] == Kill()
    assert isinstance(todo[1], Report)
    assert "stopped answering (3 probes in a row)" in todo[1].message
    assert "last words" in todo[1].message


def test_silence_while_loading_is_normal() -> None:
    assert walk(*[Silent()] * 100, life=STARTING) == (STARTING, (ProbeAfter(LIMITS.probe_starting),))


@pytest.mark.parametrize(
    ("life", "event", "says"),
    [
        (STARTING, Exited("exited with status 1", "boom"), "exited with status 1 while loading the model"),
        (RUNNING, Exited("was killed", "boom"), "was killed while serving"),
        (STARTING, StartTimedOut(600, "boom"), "did not answer within 600 s"),
    ],
)
def test_an_end_kills_then_reports_with_the_last_lines(life: EngineLife, event: Event, says: str) -> None:
    after, todo = walk(event, life=life)

    assert after.state is InstanceState.ERROR
    assert [type(each) for each in todo] == [Kill, Report, RestartAfter]
    assert isinstance(todo[1], Report)
    assert says in todo[1].message
    assert todo[1].message.endswith("last lines of its log:\nboom")


def waits(life: EngineLife, count: int) -> list[float]:
    found = []
    for _ in range(count):
        life, todo = walk(Exited("ended"), life=life)
        found += [each.seconds for each in todo if isinstance(each, RestartAfter)]
        life, _ = walk(RestartDue(), Installed(), life=life)
    return found


def test_restarts_come_at_once_and_then_ever_later() -> None:
    assert waits(STARTING, 9) == [0, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_stable_run_forgives_and_a_short_one_does_not() -> None:
    failed = replace(RUNNING, failures=5)

    assert walk(Answered(59), life=failed)[0].failures == 5
    assert walk(Answered(60), life=failed)[0].failures == 0


def test_a_restart_is_reported_as_one() -> None:
    life, _ = walk(Exited("ended"), life=RUNNING)

    assert walk(RestartDue(), life=life)[1][0] == Report(
        InstanceState.INITIALIZING, "restart 1 after an error", restarted=True
    )


@pytest.mark.parametrize("life", [replace(STARTING, restarts=False), replace(RUNNING, restarts=False)])
def test_without_restarts_an_error_is_final(life: EngineLife) -> None:
    after, todo = walk(Exited("ended"), life=life)

    assert [type(each) for each in todo] == [Kill, Report]
    assert after.state is InstanceState.ERROR


def test_what_can_never_work_is_not_tried_again() -> None:
    _, todo = walk(Assigned(), Failed("no such version", again=False))

    assert todo == (Kill(), Report(InstanceState.ERROR, "no such version"))


def test_a_second_failure_of_the_same_start_counts_once() -> None:
    once, _ = walk(Assigned(), Failed("first"))

    assert walk(Failed("late"), life=once) == (once, ())


def test_a_new_assignment_starts_a_failed_engine_and_no_other() -> None:
    failed, _ = walk(Assigned(), Failed("x", again=False))

    assert Install() in walk(Assigned(), life=failed)[1]
    assert walk(Assigned(), life=RUNNING) == (RUNNING, ())


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from(
        [
            Assigned(),
            Adopted(),
            Installed(),
            Silent(),
            RestartDue(),
            Exited("e"),
            StartTimedOut(1),
            Failed("f"),
        ]
    ),
    st.builds(Failed, st.just("f"), st.booleans()),
    st.builds(Answered, st.floats(0, 1000)),
)
LIVES = st.builds(EngineLife, restarts=st.booleans(), weight_bytes=st.integers(0, 10**12))


@given(life=LIVES, events=st.lists(EVENTS, max_size=40))
def test_any_order_of_events_keeps_the_promises(life: EngineLife, events: list[Event]) -> None:
    processes = 0
    for event in events:
        life, todo = step(life, event, LIMITS)
        kinds = [type(each) for each in todo]
        for each in todo:
            if isinstance(each, Kill):
                processes = 0
            elif isinstance(each, Spawn | Await):
                processes += 1
            elif isinstance(each, Report) and each.state is InstanceState.ERROR:
                assert kinds[0] is Kill
            elif isinstance(each, RestartAfter):
                assert life.restarts
                assert 0 <= each.seconds <= LIMITS.backoff_limit
        assert processes <= 1
        assert (processes == 1) == (life.state in (InstanceState.STARTING, InstanceState.RUNNING))
        assert kinds.count(ProbeAfter) <= 1
        # A running engine is always waiting for its next probe, a failed one for its restart if it has one.
        if isinstance(event, Answered | Silent) and processes:
            assert ProbeAfter in kinds


@given(life=LIVES, before=st.lists(EVENTS, max_size=15), after=st.lists(EVENTS, max_size=15))
def test_nothing_starts_after_it_was_withdrawn(
    life: EngineLife, before: list[Event], after: list[Event]
) -> None:
    life, todo = walk(*before, Withdrawn(), life=life)
    assert todo == (Kill(),)

    for event in after:
        life, todo = step(life, event, LIMITS)
        assert todo == ()
