"""One request's wait and turn, and one model's room for them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from gpustack.dataplane.admission.fair import FairQueue
from gpustack.dataplane.admission.values import Cancellable, Refusal, Rules, Timers
from gpustack.plugin.routing import Limits, Principal, Route

if TYPE_CHECKING:
    from gpustack.dataplane.admission.admission import Admission

Granted = Callable[[float], None]
Refused = Callable[[Refusal], None]
Holds = Callable[["Ticket"], None]


def untold(_: object) -> None:
    """Stands for what a request that did not wait need not be told."""


#: What a ticket is at.
WAITING, RUNNING, OVER = 0, 1, 2


class Ticket(msgspec.Struct, eq=False):
    """A request's place. Call ``done`` when it ended after its turn, ``cancel`` when its client left, at any time.

    A Struct, as making one costs a fraction of an ``__init__``, and is done for each request.
    """

    _admission: Admission
    room: Room
    tokens: int
    row: int
    limits: Limits | None
    state: int
    gone: bool = False
    #: Another ticket takes its place: nothing of this one is charged.
    moved: bool = False
    #: Set only for a request that had to wait.
    flow: object = None
    since: float = 0.0
    priority: int = 0
    granted: Granted = untold
    refused: Refused = untold

    @property
    def waits(self) -> bool:
        """Whether it has been told nothing yet."""
        return self.state == WAITING

    def done(self, tokens_used: int | None = None) -> None:
        """Say that the request has ended, and what it took if that is known. Twice is without effect."""
        if self.state == RUNNING:
            self.state = OVER
            self._admission._ended(self, tokens_used)
        elif self.state == WAITING:
            self.cancel()

    def move(self) -> None:
        """Say that the request goes elsewhere, where it asks again: limits get back what was taken for it here."""
        self.moved = True
        self.done(0)

    def cancel(self) -> None:
        """Say that nobody wants the answer any more. What it took so far stays taken unless it still waited."""
        if self.state == WAITING:
            self.state = OVER
            self.gone = True
            self._admission._left(self)
        elif self.state == RUNNING:
            self.done()


class Room:
    """What one route has room for, and who waits for it."""

    __slots__ = ("_bound", "_most", "_rate_at", "asked", "asleep", "capacity", "name", "obstacle", "override", "queue", "rate", "route", "row", "running", "settling", "targets", "tokens", "waiting", "waits", "woken_at")  # fmt: skip

    def __init__(self, route: Route, rules: Rules, row: int) -> None:
        self.name = route.name
        self.row = row
        self.running = 0
        #: Requests that have come in all.
        self.asked = 0
        #: Requests that wait, and their tokens.
        self.waiting = 0
        self.tokens = 0
        self.queue: FairQueue[Ticket] = FairQueue(rules.patience)
        self.override: int | None = None
        self.woken_at = -math.inf
        self.settling = False
        #: Tokens granted a second, lately, for telling when to come again.
        self.rate = 0.0
        self._rate_at = 0.0
        self.change(route, rules)

    def change(self, route: Route, rules: Rules) -> None:
        """Take what a new table says."""
        self.route = route
        self.targets = len(route.targets)
        self.asleep = route.asleep and not route.targets
        self.obstacle = route.obstacle
        self._bound = rules.queue_tokens if route.queue_tokens is None else route.queue_tokens
        self._most = math.inf if route.queue_requests is None else route.queue_requests
        #: Seconds that a request waits at most from here on.
        if self.asleep:
            self.waits = rules.longest_start if route.start_seconds is None else route.start_seconds
        else:
            self.waits = rules.longest_wait if route.queue_seconds is None else route.queue_seconds
        slots = [target.slots for target in route.targets]
        known = [count for count in slots if count is not None]
        #: None: nobody knows, so that nothing waits here.
        self.capacity = sum(known) if len(known) == len(slots) else None
        if self.override is not None and route.targets:
            self.capacity = self.override

    def takes(self, tokens: int) -> bool:
        """Tell whether ``tokens`` more may wait. One request alone always may, unless none is to wait at all."""
        count = max(1, self.targets)
        if self.waiting >= self._most * count:
            return False
        return not self.waiting or self.tokens + tokens <= self._bound * count

    def full(self, tokens: int) -> str:
        """Say why ``tokens`` more may not wait, as a sentence."""
        count = max(1, self.targets)
        if not self._most:
            return f"model {self.name} is busy, and nothing may wait for it"
        waiting = f"{self.waiting} request{'s' if self.waiting > 1 else ''}"
        if self.waiting >= self._most * count:
            return f"model {self.name} has {waiting} waiting, which is all its queue takes"
        return (
            f"model {self.name} has {waiting} of about {self.tokens} tokens waiting; its queue takes "
            f"{self._bound * count} tokens, and this one is of about {tokens}"
        )

    def granted(self, tokens: int, now: float) -> None:
        """Note how fast the queue moves: an average over about ten seconds."""
        passed = max(now - self._rate_at, 1e-3)
        self._rate_at = now
        keep = max(0.0, 1.0 - passed / 10.0)
        self.rate = self.rate * keep + (tokens / passed) * (1.0 - keep)

    def again_after(self) -> float:
        """Return in how many seconds half of what waits will probably be gone."""
        return min(60.0, max(1.0, self.tokens / 2 / self.rate)) if self.rate > 0 else 5.0


def flow_of(principal: Principal) -> object:
    """Return what requests share a flow: those of one user with one key."""
    return (principal.user_id, principal.key_id)


class Deadlines:
    """When those who wait are sent away: one timer for all, set for the first."""

    def __init__(
        self, clock: Callable[[], float], timers: Timers, expired: Callable[[Ticket, float], None]
    ) -> None:
        self._clock = clock
        self._timers = timers
        self._expired = expired
        #: Of (time, number, ticket), those included whose turn came meanwhile.
        self._heap: list[tuple[float, int, Ticket]] = []
        self._number = 0
        self._timer: Cancellable | None = None
        self._set_for = math.inf
        self._sweep_at = 1024

    def add(self, when: float, ticket: Ticket) -> None:
        """Send ``ticket`` away at ``when`` if it still waits then."""
        if len(self._heap) >= self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].state == WAITING]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 1024
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, ticket))
        if when < self._set_for:
            self._set()

    def close(self) -> None:
        """Call the timer off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._set_for = math.inf

    def _set(self) -> None:
        self.close()
        while self._heap and self._heap[0][2].state != WAITING:
            heapq.heappop(self._heap)
        if self._heap:
            self._set_for = self._heap[0][0]
            self._timer = self._timers.call_at(self._set_for, self._due)

    def _due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            ticket = heapq.heappop(self._heap)[2]
            if ticket.state == WAITING:
                self._expired(ticket, now - ticket.since)
        self._set()
