"""How far a deployment or a change has come: a pure reading of the instances.

Instances come in as the watch tells them; out come the steps to show and, sooner or later, an outcome. Nothing
here waits, prints or knows the time by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from gpustack.cli.names import state_of
from gpustack.lifecycle.engine import failed_start, will_retry
from gpustack.schemas import Event, EventType, InstanceState, ModelInstancePublic

_S = InstanceState
_HAS_PROCESS = (_S.STARTING, _S.RUNNING)

#: Seconds that an instance may be pending with a reason before that counts as "fits nowhere": what is placed again
#: after a mishap is pending for a moment only.
SETTLED = 2.0
#: Errors in a row of one instance after which waiting has no point, though GPUStack goes on trying.
HOPELESS = 3
#: Seconds between two starts that failed alike, after which a third has no point either: an engine that ends so soon
#: does not like what it was told.
AT_ONCE = 15.0


class Outcome(Enum):
    """How the waiting ends."""

    RUNNING = auto()
    FAILED = auto()
    QUEUED = auto()
    DELETED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change to show."""

    instance: str
    #: As :func:`gpustack.cli.names.state_of` tells it.
    state: str
    message: str
    #: Percent of the files that are here, while they are fetched.
    percent: float | None = None


@dataclass(slots=True)
class _Errors:
    """The errors of one instance."""

    count: int = 0
    #: How the last start failed, and when; empty for another kind of error.
    start: str = ""
    at: float = 0.0
    hopeless: bool = False

    def add(self, message: str, now: float) -> None:
        """Count one more."""
        start = failed_start(message)
        alike = bool(start) and start == self.start and now - self.at < AT_ONCE
        self.count, self.start, self.at = self.count + 1, start, now
        self.hopeless = alike or self.count >= HOPELESS


@dataclass(slots=True)
class Rollout:
    """The instances of one model on their way to ``replicas`` running ones of its present description."""

    replicas: int
    #: Digest of that description, which placed instances carry; empty takes any.
    digest: str = ""
    instances: dict[int, ModelInstancePublic] = field(default_factory=dict)
    #: The watch has told of everything that existed when it began.
    whole: bool = False
    _pending_since: dict[int, float] = field(default_factory=dict)
    _errors: dict[int, _Errors] = field(default_factory=dict)
    _seen_any: bool = False
    _had_process: set[int] = field(default_factory=set)

    def take(self, event: Event, now: float) -> Step | None:
        """Take one event of the watch at time ``now`` in seconds; return what to show of it."""
        if event.type is EventType.HEARTBEAT:
            self.whole = True
            return None
        if event.type is EventType.DELETED:
            self._forget(event.id)
            return None
        instance = ModelInstancePublic.model_validate(event.data)
        before = self.instances.get(event.id)
        self.instances[event.id] = instance
        self._seen_any = True
        self._count(before, instance, now)
        if instance.pid is not None or instance.state in _HAS_PROCESS:
            self._had_process.add(event.id)
        if before is not None and _shown(before) == _shown(instance):
            return None
        percent = instance.download_progress if instance.state is _S.DOWNLOADING else None
        return Step(
            instance=instance.name,
            state=state_of(instance),
            message=instance.state_message,
            percent=percent,
        )

    def _forget(self, number: int) -> None:
        self.instances.pop(number, None)
        self._pending_since.pop(number, None)
        self._errors.pop(number, None)

    def _count(self, before: ModelInstancePublic | None, now_is: ModelInstancePublic, now: float) -> None:
        if now_is.state is _S.PENDING and now_is.state_message:
            self._pending_since.setdefault(now_is.id, now)
        else:
            self._pending_since.pop(now_is.id, None)
        # Of reports in quick succession only the newest is sent, so an error may follow an error.
        old = (before.state, before.state_message) if before is not None else None
        if now_is.state is _S.ERROR and old != (now_is.state, now_is.state_message):
            self._errors.setdefault(now_is.id, _Errors()).add(now_is.state_message, now)

    def has_log(self, instance: ModelInstancePublic) -> bool:
        """Tell whether its engine was ever started, and so has written something."""
        message = instance.state_message
        return instance.id in self._had_process or bool(failed_start(message)) or "of its log:" in message

    def expect_new(self) -> None:
        """That there are no instances is not the end: new ones will come."""
        self._seen_any = False

    @property
    def running(self) -> int:
        """How many answer as they should."""
        return sum(each.state is _S.RUNNING and not self._leaves(each) for each in self.instances.values())

    def _leaves(self, instance: ModelInstancePublic) -> bool:
        """Tell whether it is on its way out: drained already, or placed by another description."""
        if instance.draining_since is not None:
            return True
        placed = instance.worker_id is not None or instance.state is _S.ERROR
        return bool(self.digest) and placed and instance.spec_digest not in ("", self.digest)

    def outcome(self, now: float) -> tuple[Outcome, ModelInstancePublic | None] | None:
        """Return how it ended, with the instance that made it so; None while waiting makes sense."""
        if not self.whole:
            return None
        if self._is_done():
            return Outcome.RUNNING, None
        if self._seen_any and not self.instances:
            return Outcome.DELETED, None
        staying = [each for each in self.instances.values() if not self._leaves(each)]
        # Of more copies than are wanted, those that fail are the first to be taken away.
        surplus = max(0, len(staying) - self.replicas)
        if failed := [each for each in staying if self._has_failed(each)][surplus:]:
            return Outcome.FAILED, failed[0]
        # Room is made by those that leave.
        settled = len(staying) == len(self.instances) and not surplus
        for number, since in self._pending_since.items():
            if settled and now - since >= SETTLED:
                return Outcome.QUEUED, self.instances[number]
        return None

    def _has_failed(self, instance: ModelInstancePublic) -> bool:
        """Tell whether there is no point in waiting for it."""
        if instance.state is not _S.ERROR:
            return False
        return not will_retry(instance.state_message) or self._errors[instance.id].hopeless

    def _is_done(self) -> bool:
        """As many as wanted run, and no other takes requests; those that drain may go on answering theirs."""
        serving = sum(each.draining_since is None for each in self.instances.values())
        return self.running >= self.replicas >= serving


def _shown(instance: ModelInstancePublic) -> tuple[str, str]:
    return state_of(instance), instance.state_message
