"""What is remembered of one instance: what it has to do, and whether it may be asked.

Failures in a row, or a high share of failures, eject an instance for a time that doubles with each further ejection.
When the time is over it is half open: one request goes there, and its outcome decides. A success of any request that
began after the ejection ends it.
"""

from __future__ import annotations

from collections.abc import Callable

from gpustack.dataplane.choosing.holders import key
from gpustack.dataplane.choosing.outstanding import Tally

#: Failures in a row that eject: nobody listens there, or the engine fails.
_REFUSALS_IN_A_ROW = 2
_FAILURES_IN_A_ROW = 5
#: The share of failures that ejects, over about the last twenty requests.
_FAILING_SHARE = 0.5
_SHARE_STEP = 0.05
#: Seconds of the first ejection and of the longest: a probe costs one request, a long wait an engine.
_COOL_DOWN, _LONGEST = 2.0, 30.0
#: Seconds after which an ejection is no longer held against an instance.
_FORGIVEN = 120.0


class Instance:
    """One instance, whatever the routes that lead to it. Times are the chooser's clock."""

    __slots__ = (
        "ejected", "ejections", "failing", "hard", "id", "in_a_row", "key", "probing", "reported_ill",
        "restored_at", "tally", "until", "uses",
    )  # fmt: skip

    def __init__(self, instance_id: int, tally: Tally, *, reported_ill: bool = False) -> None:
        self.id = instance_id
        self.key = key(instance_id)
        self.tally = tally
        #: Routes that lead here.
        self.uses = 0
        #: Its worker says that it does not answer.
        self.reported_ill = reported_ill
        self.in_a_row = 0
        self.failing = 0.0
        self.ejected = False
        #: Ejected because nobody listens there: asking it is of no use, however few others are left.
        self.hard = False
        #: Ejections since it was well for long; tells requests from before an ejection from those after it.
        self.ejections = 0
        self.until = 0.0
        self.restored_at = 0.0
        #: A request is on its way that decides whether an ejection ends.
        self.probing = False

    @property
    def ill(self) -> bool:
        """Whether it is left out of the usual choice."""
        return self.ejected or self.reported_ill

    @property
    def doubtful(self) -> bool:
        """Whether it is left out only for its answers, which may have been the fault of the requests."""
        return self.ejected and not self.hard and not self.reported_ill

    def half_open(self, now: float) -> bool:
        """Whether the next request may find out if it is well again."""
        return self.ejected and not self.probing and not self.reported_ill and now >= self.until

    def succeeded(self) -> None:
        """Take note of a request that began after the last ejection and went well."""
        self.in_a_row = 0
        self.failing *= 1.0 - _SHARE_STEP
        if self.failing < 0.01:
            self.failing = 0.0

    def restore(self, now: float) -> None:
        """End the ejection."""
        self.ejected = False
        self.probing = False
        self.in_a_row = 0
        self.failing = 0.0
        self.restored_at = now

    def failed(self, now: float, *, refused: bool, probe: bool, random: Callable[[], float]) -> bool:
        """Take note of a failure; return whether it ejected the instance."""
        if self.ejected:
            if probe:
                self._eject(now, refused, random)
            return probe
        self.in_a_row += 1
        self.failing += (1.0 - self.failing) * _SHARE_STEP
        limit = _REFUSALS_IN_A_ROW if refused else _FAILURES_IN_A_ROW
        if self.in_a_row < limit and self.failing < _FAILING_SHARE:
            return False
        if now - self.restored_at > _FORGIVEN:
            self.ejections = 0
        self._eject(now, refused, random)
        return True

    def _eject(self, now: float, refused: bool, random: Callable[[], float]) -> None:
        self.ejected = True
        self.probing = False
        self.hard = refused
        # Not all processes, nor all instances of a machine that came back, are to be asked in the same moment.
        spread = 0.9 + 0.2 * random()
        self.until = now + min(_COOL_DOWN * 2.0 ** min(self.ejections, 10), _LONGEST) * spread
        self.ejections += 1
