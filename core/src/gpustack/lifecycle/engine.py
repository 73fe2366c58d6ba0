"""The life of one engine on a worker: from an assignment to a process that answers, and back after a failure.

    INITIALIZING ──installed──▶ STARTING ──answers──▶ RUNNING
         ▲                         │                     │
         └──────── back-off ◀──── ERROR ◀── exits, hangs, stops answering

:func:`step` takes the present :class:`EngineLife` and one event, and returns the next one with instructions for
whoever has hands. It never waits and never asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpustack.kit.backoff import delay
from gpustack.lifecycle.engine_words import (
    Adopted,
    Answered,
    Assigned,
    Await,
    AwaitIdle,
    Drained,
    Draining,
    Event,
    Exited,
    Failed,
    Halted,
    Install,
    Installed,
    Instruction,
    Kill,
    ProbeAfter,
    Report,
    RestartAfter,
    RestartDue,
    Resumed,
    Silent,
    Spawn,
    StartTimedOut,
    Withdrawn,
)
from gpustack.schemas.instances import InstanceState

__all__ = [
    "Adopted",
    "Answered",
    "Assigned",
    "Await",
    "AwaitIdle",
    "Drained",
    "Draining",
    "EngineLife",
    "EngineLimits",
    "Event",
    "Exited",
    "Failed",
    "Halted",
    "Install",
    "Installed",
    "Instruction",
    "Kill",
    "ProbeAfter",
    "Report",
    "RestartAfter",
    "RestartDue",
    "Resumed",
    "Silent",
    "Spawn",
    "StartTimedOut",
    "Withdrawn",
    "failed_start",
    "retrying",
    "step",
    "will_retry",
]

_S = InstanceState
_HAS_PROCESS = (_S.STARTING, _S.RUNNING)
_AGAIN = "trying again"
_TAIL = "\nlast lines of its log:\n"
_LOADING = "while loading the model"
_LIVED = re.compile(r" after [\d.]+ s\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Seconds and counts; tests make them short."""

    #: How long loading may take, before anything for the size of the weights.
    start: float = 600.0
    #: Bytes of weights that a slow disk loads in one second.
    load_rate: float = 20e6
    #: Between two probes while starting, and while running.
    probe_starting: float = 0.1
    probe_running: float = 5.0
    #: Probes missed in a row before a running engine counts as hung.
    missed_probes: int = 6
    #: Back-off of restarts: the first at once, then ``backoff`` seconds, doubling up to ``backoff_limit``.
    backoff: float = 10.0
    backoff_limit: float = 300.0
    #: Running this long forgives the failures before.
    stable: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLife:
    """Where an engine is. ``failures`` counts those in a row."""

    state: InstanceState = _S.SCHEDULED
    failures: int = 0
    missed: int = 0
    #: Start again after a failure.
    restarts: bool = True
    #: Size of what it loads, for the time that may take.
    weight_bytes: int = 0
    #: It ends once its clients have left.
    draining: bool = False
    #: Taken back for good: nothing that comes later matters.
    withdrawn: bool = False


def step(life: EngineLife, event: Event, limits: EngineLimits) -> tuple[EngineLife, tuple[Instruction, ...]]:
    """Return the engine's next life and what is to be done, in order.

    Events that no longer matter (a probe's answer after the process ended, say) change nothing.
    """
    if life.withdrawn:
        return life, ()
    if isinstance(event, Withdrawn):
        return replace(life, withdrawn=True), (Kill(),)
    if life.draining or isinstance(event, Draining):
        return _drain(life, event)
    match event:
        case Assigned() if life.state in (_S.SCHEDULED, _S.ERROR):
            return replace(life, state=_S.INITIALIZING), (
                Report(_S.INITIALIZING, "installing the engine"),
                Install(),
            )
        case Adopted() if life.state is _S.SCHEDULED:
            return replace(life, state=_S.STARTING), (Await(_time_to_load(life, limits)), ProbeAfter(0.0))
        case Installed() if life.state is _S.INITIALIZING:
            seconds = _time_to_load(life, limits)
            return (
                replace(life, state=_S.STARTING, missed=0),
                (
                    Report(_S.STARTING, "the engine is loading the model"),
                    Spawn(seconds),
                    ProbeAfter(limits.probe_starting),
                ),
            )
        case Answered() if life.state in (_S.STARTING, _S.RUNNING):
            return _answered(life, event, limits)
        case Silent() if life.state is _S.STARTING:
            return life, (ProbeAfter(limits.probe_starting),)
        case Silent() if life.state is _S.RUNNING:
            return _silent(life, event, limits)
        case Failed() if life.state in (_S.INITIALIZING, _S.STARTING, _S.RUNNING):
            return _fail(life, limits, event.message, again=event.again)
        case Exited() if life.state in (_S.STARTING, _S.RUNNING):
            when = _LOADING if life.state is _S.STARTING else "while serving"
            # Our own words end at a semicolon.
            why = f": {event.why.replace(';', ',')}" if event.why else ""
            return _fail(life, limits, f"the engine {event.description} {when}{why}", tail=event.tail)
        case Exited() if life.state is _S.SCHEDULED:
            return _fail(life, limits, f"the engine {event.description}", tail=event.tail)
        case StartTimedOut() if life.state is _S.STARTING:
            at = f" at {event.path}" if event.path else ""
            return _fail(
                life,
                limits,
                f"the engine did not answer{at} within {event.seconds:.0f} s and was ended",
                tail=event.tail,
            )
        case RestartDue() if life.state is _S.ERROR:
            return (
                replace(life, state=_S.INITIALIZING),
                (
                    Report(_S.INITIALIZING, f"restart {life.failures} after an error", restarted=True),
                    Install(),
                ),
            )
        case Halted() if life.state in (_S.INITIALIZING, _S.STARTING, _S.RUNNING):
            return replace(life, state=_S.SCHEDULED, missed=0), (Kill(), Report(_S.SCHEDULED))
        case Resumed() if life.state is _S.SCHEDULED:
            wait = min(max(0.0, event.seconds), limits.backoff_limit)
            new = replace(life, state=_S.ERROR, failures=event.failures)
            return new, (Report(_S.ERROR, event.message), RestartAfter(wait))
        case _:
            return life, ()


def _drain(life: EngineLife, event: Event) -> tuple[EngineLife, tuple[Instruction, ...]]:
    """Let the engine end: after its clients when it has a process, else at once. Nobody counts on a restart."""
    match event:
        case Draining() if not life.draining:
            new = replace(life, draining=True)
            return (new, (AwaitIdle(event.seconds),)) if life.state in _HAS_PROCESS else _ended(new)
        case Drained() | Exited() | Failed():
            return _ended(life)
        case _:
            return life, ()


def _ended(life: EngineLife) -> tuple[EngineLife, tuple[Instruction, ...]]:
    return replace(life, withdrawn=True), (Kill(), Report(life.state, ended=True))


def _time_to_load(life: EngineLife, limits: EngineLimits) -> float:
    return limits.start + life.weight_bytes / limits.load_rate


def _answered(
    life: EngineLife, event: Answered, limits: EngineLimits
) -> tuple[EngineLife, tuple[Instruction, ...]]:
    failures = 0 if event.running_for >= limits.stable else life.failures
    new = replace(life, state=_S.RUNNING, missed=0, failures=failures)
    probe = ProbeAfter(limits.probe_running)
    return new, ((Report(_S.RUNNING), probe) if life.state is _S.STARTING else (probe,))


def _silent(
    life: EngineLife, event: Silent, limits: EngineLimits
) -> tuple[EngineLife, tuple[Instruction, ...]]:
    missed = life.missed + 1
    if missed < limits.missed_probes:
        return replace(life, missed=missed), (ProbeAfter(limits.probe_running),)
    return _fail(
        life,
        limits,
        f"the engine stopped answering ({missed} probes in a row) and was ended",
        tail=event.tail,
    )


def _fail(
    life: EngineLife, limits: EngineLimits, message: str, *, tail: str = "", again: bool = True
) -> tuple[EngineLife, tuple[Instruction, ...]]:
    """Kill first, so that memory and port are free before anybody acts on the report."""
    wait = (
        0.0
        if life.failures == 0
        else delay(life.failures - 1, first=limits.backoff, limit=limits.backoff_limit)
    )
    retry = again and life.restarts
    text = f"{message}{_TAIL}{tail}" if tail else message
    if retry:
        text = retrying(text, wait)
    new = replace(life, state=_S.ERROR, failures=life.failures + 1, missed=0)
    instructions: tuple[Instruction, ...] = (Kill(), Report(_S.ERROR, text))
    return new, (*instructions, RestartAfter(wait)) if retry else instructions


def retrying(message: str, wait: float) -> str:
    """Return the message of an error after which the engine is started again in ``wait`` seconds."""
    how, tail, lines = message.partition(_TAIL)
    return f"{how}; {_AGAIN} in {wait:.0f} s{tail}{lines}" if wait else f"{how}; {_AGAIN} now{tail}{lines}"


def will_retry(message: str) -> bool:
    """Tell from the message of an instance in ERROR whether its engine is started again by itself."""
    # What the engine wrote must not be taken for our own words.
    return f"; {_AGAIN} " in message.partition(_TAIL)[0]


def failed_start(message: str) -> str:
    """Return how an engine ended while it loaded, from the message of an instance in ERROR; empty for other errors.

    An engine that ends in the same way each time gives the same answer, however long it lived and whatever its last
    lines are.
    """
    how = message.partition(_TAIL)[0].partition(f"; {_AGAIN} ")[0]
    how, loading, rest = how.partition(_LOADING)
    return _LIVED.sub("", f"{how}{loading}") if loading and (not rest or rest.startswith(": ")) else ""
