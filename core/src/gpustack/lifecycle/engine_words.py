"""What can happen to an engine, and what is to be done about it: the words of :func:`gpustack.lifecycle.engine.step`."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.schemas.instances import InstanceState

# Events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assigned:
    """The server gave the instance to this worker."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """Its process was found running after a restart of the worker."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The engine's environment is there and proven."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Something before or around the process did not work. ``message`` says what to do."""

    message: str
    #: False when trying again cannot help.
    again: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """The probe got its answer. ``running_for`` is the seconds since the first one."""

    running_for: float = 0.0


@dataclass(frozen=True, slots=True)
class Silent:
    """The probe got none. ``tail`` holds the engine's last lines."""

    tail: str = ""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself. ``description`` says how, ``tail`` holds its last lines, ``why`` is read out of them."""

    description: str
    tail: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class StartTimedOut:
    """It did not answer in the time that loading may take; ``path`` is what was asked, where people chose that."""

    seconds: float
    tail: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class RestartDue:
    """The back-off is over."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A worker before this one waited with the next start: ``seconds`` are left of that, ``message`` says why."""

    failures: int
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class Draining:
    """The server sends no new requests; those in flight have ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Drained:
    """No client is connected any more, or their time is over."""


@dataclass(frozen=True, slots=True)
class Halted:
    """Another member of its instance failed: it ends, and waits for the next attempt."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The server took the instance back: it was deleted or moved."""


Event = (
    Assigned
    | Adopted
    | Installed
    | Failed
    | Answered
    | Silent
    | Exited
    | StartTimedOut
    | RestartDue
    | Resumed
    | Draining
    | Drained
    | Halted
    | Withdrawn
)


# Instructions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Install:
    """Make the engine's environment ready; answer Installed or Failed."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process; it must answer within ``seconds``, else StartTimedOut."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Await:
    """It runs already; it must answer within ``seconds``, else StartTimedOut."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ProbeAfter:
    """Probe once, ``seconds`` from now; answer Answered or Silent."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """End the whole process tree."""


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Answer RestartDue ``seconds`` from now."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the server."""

    state: InstanceState
    message: str = ""
    restarted: bool = False
    #: It has drained and is gone.
    ended: bool = False


@dataclass(frozen=True, slots=True)
class AwaitIdle:
    """Answer Drained when no client is connected to the engine any more, or ``seconds`` are over."""

    seconds: float


Instruction = Install | Spawn | Await | ProbeAfter | Kill | RestartAfter | Report | AwaitIdle
