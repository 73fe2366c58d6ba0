"""One request's wait and turn."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from gpustack.dataplane.admission.values import Cancellable, Refusal, Timers
from gpustack.plugin.routing import Limits, Principal

if TYPE_CHECKING:
    from gpustack.dataplane.admission.admission import Admission
    from gpustack.dataplane.admission.rooms import Pool, Room

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
    #: Where it counts; None for a request that was refused, or whose model is not chosen yet.
    pool: Pool | None
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
    weight: int = 100
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

    def at(self, model: str) -> None:
        """Say which model the request is sent to, where it counts from now on."""
        pool = self.pool
        if pool is None or pool.name != model:
            self._admission._moved(self, model)

    def not_first(self) -> tuple[int, ...]:
        """Return the instances, of a route to several models, that others would have to wait for if it went there."""
        return self.room.not_first(self.pool) if self.room.several else ()

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
