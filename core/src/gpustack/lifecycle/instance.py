"""Which state of an instance may follow which, how long each may last, and what happens then."""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.schemas.instances import InstanceState

_S = InstanceState

#: The worker owns an instance in these states; the server only watches the clock.
ON_WORKER = frozenset({_S.INITIALIZING, _S.DOWNLOADING, _S.STARTING, _S.RUNNING, _S.ERROR})

#: In these states an instance holds memory on its worker.
HOLDS_CLAIM = frozenset(
    {_S.SCHEDULED, _S.INITIALIZING, _S.DOWNLOADING, _S.STARTING, _S.RUNNING, _S.ERROR, _S.UNREACHABLE}
)

#: A worker that could not reach the server for a while reports only the newest state, so once it owns an
#: instance any of its states may follow any other.
STEPS: dict[InstanceState, frozenset[InstanceState]] = {
    _S.PENDING: frozenset({_S.ANALYZING, _S.ERROR}),
    _S.ANALYZING: frozenset({_S.SCHEDULED, _S.PENDING, _S.ERROR}),
    _S.SCHEDULED: ON_WORKER | {_S.PENDING, _S.UNREACHABLE},
    _S.INITIALIZING: ON_WORKER | {_S.PENDING, _S.UNREACHABLE},
    _S.DOWNLOADING: ON_WORKER | {_S.PENDING, _S.UNREACHABLE},
    _S.STARTING: ON_WORKER | {_S.PENDING, _S.UNREACHABLE},
    _S.RUNNING: ON_WORKER | {_S.UNREACHABLE},
    _S.ERROR: ON_WORKER | {_S.PENDING, _S.SCHEDULED, _S.UNREACHABLE},
    _S.UNREACHABLE: ON_WORKER | {_S.PENDING},
}


def may_follow(old: InstanceState, new: InstanceState) -> bool:
    """Tell whether ``new`` may come right after ``old``; staying in a state always may."""
    return new == old or new in STEPS[old]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds that an instance may stay in a state; tests make them short.

    PENDING has none of its own kind: waiting for room is legitimate, so it is looked at again whenever
    capacity changes and at the latest after ``pending``. RUNNING is watched by probes, and ERROR by the
    worker's restart back-off.
    """

    pending: float = 30.0
    #: ANALYZING and DOWNLOADING last as long as they go on: these are the seconds without news.
    analyzing: float = 60.0
    scheduled: float = 60.0
    #: Installing an engine downloads gigabytes on slow links.
    initializing: float = 3600.0
    #: Without any sign of going on: what waits for the hub says so with each attempt.
    downloading: float = 900.0
    #: Loading is bounded by the disk: this much, and a second for every ``load_rate`` bytes of weights. A minute
    #: more than the worker gives its engine: the worker ends that first and says why, this is for a worker that hangs.
    starting: float = 660.0
    load_rate: float = 20e6
    #: Since its worker was missed. Shorter than the time within which most of a fleet has to fall silent to be
    #: taken for cut off, the first of them would be placed anew before that is known.
    unreachable: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The state an instance goes to, and the message that says why."""

    state: InstanceState
    message: str


def time_allowed(state: InstanceState, limits: Deadlines, *, weight_bytes: int = 0) -> float | None:
    """Return the seconds ``state`` may last, or None when it may last for ever."""
    match state:
        case _S.PENDING:
            return limits.pending
        case _S.ANALYZING:
            return limits.analyzing
        case _S.SCHEDULED:
            return limits.scheduled
        case _S.INITIALIZING:
            return limits.initializing
        case _S.DOWNLOADING:
            return limits.downloading
        case _S.STARTING:
            return limits.starting + weight_bytes / limits.load_rate
        case _S.UNREACHABLE:
            return limits.unreachable
        case _:
            return None


def overdue(state: InstanceState, worker: str, seconds: float) -> Step | None:
    """Return what becomes of an instance whose time in ``state`` is over; None changes nothing."""
    waited = f"{seconds:.0f} s"
    match state:
        case _S.ANALYZING:
            return Step(
                state=_S.ERROR,
                message=f"no worker has read the model's files within {waited}; check that a worker is ready with "
                "`gpustack workers`, and that the path does not lie on a stalled network file system",
            )
        case _S.SCHEDULED:
            return Step(
                state=_S.PENDING,
                message=f"worker {worker} did not take the instance within {waited}; placing it again",
            )
        case _S.INITIALIZING:
            return Step(
                state=_S.ERROR,
                message=f"worker {worker} could not install the engine within {waited}; see its log, and try "
                "`gpustack rm` and `gpustack deploy` once the network is well",
            )
        case _S.DOWNLOADING:
            return Step(
                state=_S.ERROR,
                message=f"worker {worker} has not gone on fetching the model's files for {waited}; see its log",
            )
        case _S.STARTING:
            return Step(
                state=_S.ERROR,
                message=f"the engine did not answer within {waited}; see `gpustack logs` for what it was doing",
            )
        case _S.UNREACHABLE:
            return Step(
                state=_S.PENDING,
                message=f"worker {worker} was lost from sight {waited} ago; placing the instance again",
            )
        case _:
            return None
