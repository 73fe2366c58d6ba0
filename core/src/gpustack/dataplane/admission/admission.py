"""Who may go on now, who waits, and who is sent away. Pure: time and timers are given.

::

    admission = Admission(loop.time, loop, wake=wake)
    admission.apply(table)
    ticket = admission.ask(principal, route, tokens, granted, refused)   # calls one of both, now or later
    ticket.done(tokens_used)                                              # or ticket.cancel()

A turn is asked for at a route and counts at a model, whose slots and queue all routes to it have in common: as many of
its requests run at once as its instances have slots; where some instance's are unknown nothing waits. Of what waits,
:mod:`~gpustack.dataplane.admission.fair` says who is next. A route to several models goes on where one has room: which
one it is, ``ticket.at`` tells. Without room anywhere it waits for the one where least waits.

With shared buckets the slots hold over all gateway processes, with at most one request too many for each other process
that lets one in at the same moment; each process has its own queue, and looks every 20 ms whether others made room.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

from gpustack.dataplane.admission.buckets import Buckets
from gpustack.dataplane.admission.limits import RateLimits, limited
from gpustack.dataplane.admission.rooms import Pool, Room, by_model
from gpustack.dataplane.admission.turns import (
    OVER,
    RUNNING,
    WAITING,
    Deadlines,
    Granted,
    Holds,
    Refused,
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
        #: By the names of routes, and of models.
        self._rooms: dict[str, Room] = {}
        self._pools: dict[str, Pool] = {}
        self._deadlines = Deadlines(clock, timers, self._expired)
        self._looking: Cancellable | None = None

    def room(self, route: Route) -> Room:
        """Return what is known here of ``route``, which a table has; it stands for it until a table has another."""
        room = self._rooms.get(route.name)
        if room is None:
            room = self._rooms[route.name] = Room(route)
            self._change(room, route)
        elif room.route is not route:
            room.gone = False
            self._change(room, route)
        return room

    def enter(self, principal: Principal, room: Room, tokens: int) -> Ticket | None:
        """Return a turn for a request, the usual way: nobody waits, and nothing is counted of who asks; else None."""
        pool = room.pool
        if pool is None or pool.waiting or not room.targets:
            return None
        limits = principal.limits
        if (
            limits.requests_per_minute is not None
            or limits.tokens_per_minute is not None
            or limits.concurrency is not None
        ):
            return None
        capacity, row = pool.capacity, pool.row
        if row >= 0:
            buckets = self._buckets
            if capacity is not None and buckets.running(row) >= capacity:
                return None
            buckets.numbers[row + buckets.seat] += 1
        elif capacity is not None and pool.running >= capacity:
            return None
        room.asked += 1
        room.running += 1
        pool.running += 1
        return Ticket(self, room, pool, tokens, -1, None, RUNNING)

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
        room = self.room(route)
        room.asked += 1
        row = -1
        limits = None
        if limited(principal.limits):
            limits = principal.limits
            taken = self._limits.take(principal, tokens, self._clock())
            if isinstance(taken, Refusal):
                ticket = Ticket(self, room, None, tokens, -1, None, OVER)
                holds(ticket)
                refused(taken)
                return ticket
            row = taken
        ticket = Ticket(self, room, None, tokens, row, limits, OVER)
        holds(ticket)
        if room.free():
            ticket.state = RUNNING
            room.running += 1
            if room.pool is not None:
                self._at(ticket, room.pool)
            granted(0.0)
        else:
            self._queue(ticket, room, principal, granted, refused)
        return ticket

    def apply(self, table: RoutingTable, changed: Iterable[str] | None = None) -> None:
        """Take a new table: who waits for a route that has room now goes on. ``changed`` names the routes that differ."""
        names = list(self._rooms) if changed is None else [name for name in changed if name in self._rooms]
        touched: dict[Pool, None] = {}
        for name in names:
            room = self._rooms[name]
            route = table.routes.get(name)
            if route is room.route:
                continue
            room.gone = route is None
            if route is None:
                route = Route(name=name, created=room.route.created, obstacle="is gone")
            touched |= dict.fromkeys(self._take(room, route))
        for pool in touched:
            self._settle(pool)
        for name in names:
            if (room := self._rooms[name]).gone and not room.running and not room.waiting:
                del self._rooms[name]

    def capacity(self, name: str, slots: int | None) -> None:
        """Say how many requests a model can have running, whatever its targets say; None: what they say.

        For whoever knows that instances are out for a while, or has learned what they can do.
        """
        pool = self._pools.get(name)
        if pool is not None:
            pool.override = slots
            for room in list(pool.rooms.values()):
                self._change(room, room.route)

    def waiting(self, name: str) -> tuple[int, int]:
        """Return how many requests wait by a route, and their tokens."""
        room = self._rooms.get(name)
        return (0, 0) if room is None else (room.waiting, room.tokens)

    def running(self, name: str) -> int:
        """Return how many requests of this process have their turn by a route."""
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
        room, row, pool = ticket.room, ticket.row, ticket.pool
        room.running -= 1
        waiting = 0
        if pool is not None:
            pool.running -= 1
            if (at := pool.row) >= 0:
                buckets = self._buckets
                buckets.numbers[at + buckets.seat] -= 1
            waiting = pool.waiting
        if row < 0 and not waiting:
            return
        actual = ticket.tokens if used is None else used
        if row >= 0 and ticket.limits is not None:
            if ticket.moved:
                self._limits.undo(row, ticket.limits, ticket.tokens, self._clock())
            else:
                self._limits.end(row, ticket.limits, ticket.tokens, actual, self._clock())
        if waiting and pool is not None:
            if ticket.flow is not None and actual != ticket.tokens:
                pool.queue.correct(ticket.flow, actual - ticket.tokens, priority=ticket.priority)
            self._settle(pool)

    def _left(self, ticket: Ticket) -> None:
        self._waits(ticket, -1)
        if ticket.row >= 0 and ticket.limits is not None:
            self._limits.undo(ticket.row, ticket.limits, ticket.tokens, self._clock())

    def _moved(self, ticket: Ticket, model: str) -> None:
        """Count a request that runs at ``model``, where it may be one too many after a first try elsewhere."""
        before = ticket.pool
        if ticket.state != RUNNING:
            return
        self._at(ticket, self._pool(model))
        if before is not None:
            before.run(-1)
            if before.waiting:
                self._settle(before)

    # The inside.

    def _pool(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(name, self._rules, self._buckets)
        return pool

    def _change(self, room: Room, route: Route) -> None:
        for pool in self._take(room, route):
            self._settle(pool)

    def _take(self, room: Room, route: Route) -> list[Pool]:
        """Take what a route is now; return the pools whose waiting requests this may concern."""
        before = room.pools
        room.change(route, self._rules)
        there = by_model(route)
        if room.gone:
            # Who waits is told so where nothing else leads there, and served where something does.
            pools = list(before)
            for pool in pools:
                pool.rooms.pop(room.name, None)
                if not pool.rooms:
                    pool.change(())
            self._tidy(pools)
            return pools
        pools = []
        for model, targets in there.items():
            pool = self._pool(model)
            pool.change(targets)
            pool.rooms[room.name] = room
            if len(there) == 1 or any(each.weight for each in targets):
                pools.append(pool)
        room.pools = tuple(pools or map(self._pool, there))
        room.several = len(there) > 1
        room.pool = None if room.several else room.pools[0]
        left = [pool for pool in before if pool not in room.pools]
        for pool in left:
            if pool.name not in there:
                pool.rooms.pop(room.name, None)
            if room.waiting and pool.waiting:
                self._rehome(room, pool)
        self._tidy(left)
        return [*room.pools, *left]

    def _rehome(self, room: Room, pool: Pool) -> None:
        """Let the requests of ``room`` wait where it leads now."""
        held = []
        while (ticket := pool.queue.pop()) is not None:
            held.append(ticket)
        for ticket in held:
            if ticket.room is room:
                self._waits(ticket, -1)
                ticket.pool = room.shortest()
                self._waits(ticket, 1)
            self._stand(ticket)

    def _tidy(self, pools: Iterable[Pool]) -> None:
        """Forget the pools that nothing leads to."""
        for pool in pools:
            if not (pool.rooms or pool.waiting or pool.running) and self._pools.get(pool.name) is pool:
                del self._pools[pool.name]

    def _at(self, ticket: Ticket, pool: Pool) -> None:
        ticket.pool = pool
        pool.run(1)

    def _waits(self, ticket: Ticket, change: int) -> None:
        """Count a request as waiting, or no longer so."""
        room, pool = ticket.room, ticket.pool
        assert pool is not None
        tokens = change * ticket.tokens
        room.waiting += change
        room.tokens += tokens
        pool.waiting += change
        pool.tokens += tokens

    def _stand(self, ticket: Ticket) -> None:
        assert ticket.pool is not None
        ticket.pool.queue.add(ticket.flow, ticket, weight=ticket.weight, priority=ticket.priority)

    def _queue(
        self, ticket: Ticket, room: Room, principal: Principal, granted: Granted, refused: Refused
    ) -> None:
        now = self._clock()
        ticket.granted, ticket.refused = granted, refused
        if not room.targets and not room.asleep:
            message = f"model {room.name} {room.obstacle}; try again later"
            self._turn_away(ticket, _no("none_running", message, 5.0))
            return
        pool = room.shortest()
        if not room.takes(pool, ticket.tokens):
            # Of several models another one may have room for one that is shorter, or fewer.
            pool = next((each for each in room.pools if room.takes(each, ticket.tokens)), pool)
        if not room.takes(pool, ticket.tokens):
            self._turn_away(ticket, _no("queue_full", room.full(pool, ticket.tokens), pool.again_after()))
            return
        ticket.state = WAITING
        ticket.since = now
        ticket.flow = flow_of(principal)
        ticket.priority = principal.limits.priority
        ticket.weight = principal.limits.weight
        ticket.pool = pool
        self._waits(ticket, 1)
        self._stand(ticket)
        self._deadlines.add(now + room.waits, ticket)
        self._settle(pool)

    def _turn_away(self, ticket: Ticket, refusal: Refusal) -> None:
        ticket.state = OVER
        if ticket.row >= 0 and ticket.limits is not None:
            self._limits.undo(ticket.row, ticket.limits, ticket.tokens, self._clock())
        ticket.refused(refusal)

    def _settle(self, pool: Pool) -> None:
        """Let go on who can, in order. A callback that comes back here finds the loop below at work already."""
        if pool.settling:
            return
        pool.settling = True
        try:
            while pool.waiting and self._next(pool):
                pass
        finally:
            pool.settling = False

    def _next(self, pool: Pool) -> bool:
        """Tell one of those who wait; False when nobody's time has come."""
        if not pool.targets:
            asleep = [each for each in pool.rooms.values() if each.asleep and each.waiting]
            for room in asleep:
                self._wake_up(room)
            if asleep:
                return False
            if (ticket := pool.queue.pop()) is not None:
                message = f"model {ticket.room.name} {ticket.room.obstacle}; try again later"
                self._send_away(ticket, _no("none_running", message, 5.0))
            return ticket is not None
        if not pool.has_room:
            if pool.row >= 0 and self._looking is None:
                self._looking = self._timers.call_at(self._clock() + self._rules.look, self._look)
            return False
        if (ticket := pool.queue.pop()) is None:
            return False
        now = self._clock()
        room = ticket.room
        room.woken_at = -math.inf
        self._waits(ticket, -1)
        pool.granted(ticket.tokens, now)
        ticket.state = RUNNING
        room.running += 1
        pool.run(1)
        try:
            ticket.granted(now - ticket.since)
        except Exception:
            log.exception("model %s: a request that had waited failed", room.name)
            ticket.done()
        return True

    def _send_away(self, ticket: Ticket, refusal: Refusal) -> None:
        ticket.gone = True
        self._waits(ticket, -1)
        try:
            self._turn_away(ticket, refusal)
        except Exception:
            log.exception("model %s: a request that had waited failed", ticket.room.name)

    def _wake_up(self, room: Room) -> None:
        now = self._clock()
        if self._wake is not None and now - room.woken_at >= self._rules.wake_again:
            room.woken_at = now
            self._wake(room.route)

    def _look(self) -> None:
        """See whether other processes made room."""
        self._looking = None
        for pool in list(self._pools.values()):
            if pool.waiting:
                self._settle(pool)

    def _expired(self, ticket: Ticket, waited: float) -> None:
        room, pool = ticket.room, ticket.pool
        assert pool is not None
        if pool.targets:
            message = f"model {room.name} had no room for this request for {round(waited, 1):g} s"
            self._send_away(ticket, _no("queue_timeout", message, pool.again_after()))
        else:
            message = f"model {room.name} did not start within {round(waited, 1):g} s: it {room.obstacle}"
            self._send_away(ticket, _no("asleep", message, 30.0))


def _no(reason: Reason, message: str, retry_after: float) -> Refusal:
    return Refusal(status=503, reason=reason, message=message, retry_after=retry_after)
