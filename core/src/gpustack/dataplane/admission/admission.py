"""Who may go on now, who waits, and who is sent away. Pure: time and timers are given.

::

    admission = Admission(loop.time, loop, wake=wake)
    admission.apply(table)
    ticket = admission.ask(principal, route, tokens, granted, refused)   # calls one of both, now or later
    ticket.done(tokens_used)                                              # or ticket.cancel()

A turn is asked for at a route, not at an instance: as many requests run at once as all its targets have slots; where
some target's slots are unknown nothing waits. Of what waits, :mod:`~gpustack.dataplane.admission.fair` says who is next.
Two routes to the same instance do not know of each other here.

With shared buckets the slots hold over all gateway processes, with at most one request too many for each other process
that lets one in at the same moment; each process has its own queue, and looks every 20 ms whether others made room.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

from gpustack.dataplane.admission.buckets import Buckets
from gpustack.dataplane.admission.limits import RateLimits, limited
from gpustack.dataplane.admission.turns import (
    OVER,
    RUNNING,
    WAITING,
    Deadlines,
    Granted,
    Holds,
    Refused,
    Room,
    Ticket,
    flow_of,
    untold,
)
from gpustack.dataplane.admission.values import Cancellable, Reason, Refusal, Rules, Timers
from gpustack.plugin.routing import Principal, Route, RoutingTable

log = logging.getLogger(__name__)


class Admission:
    """One process's admission. Everything is called on one event loop; callbacks may call back into it."""

    def __init__(
        self,
        clock: Callable[[], float],
        timers: Timers,
        shared: Buckets | None = None,
        *,
        processes: int = 1,
        rules: Rules | None = None,
        wake: Callable[[Route], None] | None = None,
    ) -> None:
        """``wake`` starts a route that is asleep; ``processes`` counts when limits are not ``shared``."""
        self._clock = clock
        self._timers = timers
        self._rules = rules or Rules()
        self._buckets = shared or Buckets.alone()
        self._limits = RateLimits(self._buckets, processes=processes)
        self._wake = wake
        self._rooms: dict[str, Room] = {}
        self._deadlines = Deadlines(clock, timers, self._expired)
        self._looking: Cancellable | None = None

    def enter(self, principal: Principal, route: Route, tokens: int) -> Ticket | None:
        """Return a turn for a request, the usual way: nobody waits, and nothing is counted of who asks; else None."""
        room = self._rooms.get(route.name)
        if room is None or room.route is not route or room.waiting or not room.targets:
            return None
        limits = principal.limits
        if (
            limits.requests_per_minute is not None
            or limits.tokens_per_minute is not None
            or limits.concurrency is not None
        ):
            return None
        capacity, row = room.capacity, room.row
        if row >= 0:
            buckets = self._buckets
            if capacity is not None and buckets.running(row) >= capacity:
                return None
            buckets.numbers[row + buckets.seat] += 1
        elif capacity is not None and room.running >= capacity:
            return None
        room.running += 1
        return Ticket(self, room, tokens, -1, None, RUNNING)

    def ask(
        self,
        principal: Principal,
        route: Route,
        tokens: int,
        granted: Granted,
        refused: Refused,
        holds: Holds = untold,
    ) -> Ticket:
        """Ask for a turn for a request of about ``tokens``, prompt and answer.

        Calls ``granted`` with the seconds that it waited, or ``refused``, before this returns as a rule; ``holds`` is given
        the ticket before either, for whoever may ask elsewhere within them and has to give this one back first.
        """
        room = self._rooms.get(route.name)
        if room is None:
            room = self._room(route)
        elif room.route is not route:
            room.change(route, self._rules)
            self._settle(room)
        room.asked += 1
        row = -1
        limits = None
        if limited(principal.limits):
            limits = principal.limits
            taken = self._limits.take(principal, tokens, self._clock())
            if isinstance(taken, Refusal):
                ticket = Ticket(self, room, tokens, -1, None, OVER)
                holds(ticket)
                refused(taken)
                return ticket
            row = taken
        ticket = Ticket(self, room, tokens, row, limits, OVER)
        holds(ticket)
        if not room.waiting and room.targets and (room.capacity is None or self._has_room(room)):
            ticket.state = RUNNING
            self._start(room)
            granted(0.0)
        else:
            self._queue(ticket, room, row, principal, granted, refused)
        return ticket

    def apply(self, table: RoutingTable, changed: Iterable[str] | None = None) -> None:
        """Take a new table: who waits for a route that has room now goes on. ``changed`` names the routes that differ."""
        names = list(self._rooms) if changed is None else [name for name in changed if name in self._rooms]
        for name in names:
            room = self._rooms[name]
            route = table.routes.get(name)
            if route is room.route:
                continue
            if route is None:
                route = Route(name=name, created=room.route.created, obstacle="is gone")
            room.change(route, self._rules)
            self._settle(room)
            if name not in table.routes and not room.running and not room.waiting:
                del self._rooms[name]

    def capacity(self, name: str, slots: int | None) -> None:
        """Say how many requests a route can have running, whatever its targets say; None: what they say.

        For whoever knows that instances are out for a while, or has learned what they can do.
        """
        room = self._rooms.get(name)
        if room is not None:
            room.override = slots
            room.change(room.route, self._rules)
            self._settle(room)

    def waiting(self, name: str) -> tuple[int, int]:
        """Return how many requests wait for a route, and their tokens."""
        room = self._rooms.get(name)
        return (0, 0) if room is None else (room.waiting, room.tokens)

    def running(self, name: str) -> int:
        """Return how many requests of this process have their turn at a route."""
        room = self._rooms.get(name)
        return 0 if room is None else room.running

    def survey(self) -> list[tuple[str, int, int, int]]:
        """Return, for each route that was asked for, its name, and how many requests run, wait, and their tokens."""
        return [(name, room.running, room.waiting, room.tokens) for name, room in self._rooms.items()]

    def load(self) -> dict[str, tuple[int, int, int]]:
        """Return, for each route that was asked for, how many requests run, wait, and have come in all."""
        return {name: (room.running, room.waiting, room.asked) for name, room in self._rooms.items()}

    def held(self) -> list[str]:
        """Return the routes that are asleep and that somebody waits for."""
        return [name for name, room in self._rooms.items() if room.asleep and room.waiting]

    def close(self) -> None:
        """Call the timers off; who waits is told nothing."""
        self._deadlines.close()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    # Called by tickets.

    def _ended(self, ticket: Ticket, used: int | None) -> None:
        room, row = ticket.room, ticket.row
        room.running -= 1
        if (at := room.row) >= 0:
            buckets = self._buckets
            buckets.numbers[at + buckets.seat] -= 1
        if row < 0 and not room.waiting:
            return
        actual = ticket.tokens if used is None else used
        if row >= 0 and ticket.limits is not None:
            if ticket.moved:
                self._limits.undo(row, ticket.limits, ticket.tokens, self._clock())
            else:
                self._limits.end(row, ticket.limits, ticket.tokens, actual, self._clock())
        if room.waiting:
            if ticket.flow is not None and actual != ticket.tokens:
                room.queue.correct(ticket.flow, actual - ticket.tokens, priority=ticket.priority)
            self._settle(room)

    def _left(self, ticket: Ticket) -> None:
        ticket.room.waiting -= 1
        ticket.room.tokens -= ticket.tokens
        if ticket.row >= 0 and ticket.limits is not None:
            self._limits.undo(ticket.row, ticket.limits, ticket.tokens, self._clock())

    # The inside.

    def _room(self, route: Route) -> Room:
        row = self._buckets.row(("route", route.name)) if self._buckets.shared else -1
        room = self._rooms[route.name] = Room(route, self._rules, row)
        return room

    def _has_room(self, room: Room) -> bool:
        if room.capacity is None:
            return True
        if room.row >= 0:
            return self._buckets.running(room.row) < room.capacity
        return room.running < room.capacity

    def _start(self, room: Room) -> None:
        room.running += 1
        if room.row >= 0:
            self._buckets.run(room.row, 1)

    def _queue(
        self, ticket: Ticket, room: Room, row: int, principal: Principal, granted: Granted, refused: Refused
    ) -> None:
        now = self._clock()
        ticket.granted, ticket.refused = granted, refused
        if not room.targets and not room.asleep:
            message = f"model {room.name} {room.obstacle}; try again later"
            self._turn_away(ticket, row, _no("none_running", message, 5.0))
            return
        if not room.takes(ticket.tokens):
            self._turn_away(ticket, row, _no("queue_full", room.full(ticket.tokens), room.again_after()))
            return
        ticket.state = WAITING
        ticket.since = now
        ticket.flow = flow_of(principal)
        ticket.priority = principal.limits.priority
        room.waiting += 1
        room.tokens += ticket.tokens
        room.queue.add(ticket.flow, ticket, weight=principal.limits.weight, priority=ticket.priority)
        self._deadlines.add(now + room.waits, ticket)
        self._settle(room)

    def _turn_away(self, ticket: Ticket, row: int, refusal: Refusal) -> None:
        ticket.state = OVER
        if row >= 0 and ticket.limits is not None:
            self._limits.undo(row, ticket.limits, ticket.tokens, self._clock())
        ticket.refused(refusal)

    def _settle(self, room: Room) -> None:
        """Let go on who can, in order. A callback that comes back here finds the loop below at work already."""
        if room.settling:
            return
        room.settling = True
        try:
            while room.waiting and self._next(room):
                pass
        finally:
            room.settling = False

    def _next(self, room: Room) -> bool:
        """Tell one of those who wait; False when nobody's time has come."""
        if not room.targets:
            if room.asleep:
                self._wake_up(room)
                return False
            if (ticket := room.queue.pop()) is not None:
                message = f"model {room.name} {room.obstacle}; try again later"
                self._send_away(ticket, _no("none_running", message, 5.0))
            return ticket is not None
        room.woken_at = -math.inf
        if not self._has_room(room):
            if room.row >= 0 and self._looking is None:
                self._looking = self._timers.call_at(self._clock() + self._rules.look, self._look)
            return False
        if (ticket := room.queue.pop()) is None:
            return False
        now = self._clock()
        room.waiting -= 1
        room.tokens -= ticket.tokens
        room.granted(ticket.tokens, now)
        ticket.state = RUNNING
        self._start(room)
        try:
            ticket.granted(now - ticket.since)
        except Exception:
            log.exception("model %s: a request that had waited failed", room.name)
            ticket.done()
        return True

    def _send_away(self, ticket: Ticket, refusal: Refusal) -> None:
        room = ticket.room
        ticket.gone = True
        room.waiting -= 1
        room.tokens -= ticket.tokens
        try:
            self._turn_away(ticket, ticket.row, refusal)
        except Exception:
            log.exception("model %s: a request that had waited failed", room.name)

    def _wake_up(self, room: Room) -> None:
        now = self._clock()
        if self._wake is not None and now - room.woken_at >= self._rules.wake_again:
            room.woken_at = now
            self._wake(room.route)

    def _look(self) -> None:
        """See whether other processes made room."""
        self._looking = None
        for room in list(self._rooms.values()):
            if room.waiting:
                self._settle(room)

    def _expired(self, ticket: Ticket, waited: float) -> None:
        room = ticket.room
        if room.targets:
            message = f"model {room.name} had no room for this request for {round(waited, 1):g} s"
            self._send_away(ticket, _no("queue_timeout", message, room.again_after()))
        else:
            message = f"model {room.name} did not start within {round(waited, 1):g} s: it {room.obstacle}"
            self._send_away(ticket, _no("asleep", message, 30.0))


def _no(reason: Reason, message: str, retry_after: float) -> Refusal:
    return Refusal(status=503, reason=reason, message=message, retry_after=retry_after)
