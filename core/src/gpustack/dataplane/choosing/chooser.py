"""Which of a route's instances takes a request.

The one with the least to do, unless one has the beginning of the conversation in its cache and not much more to do;
shares, slow start and the state of the instances narrow the choice before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from random import Random

from gpustack.dataplane.choosing.affinity import Affinity
from gpustack.dataplane.choosing.instance import Instance
from gpustack.dataplane.choosing.known import Known, Member
from gpustack.dataplane.choosing.lease import ANSWER, Lease
from gpustack.dataplane.choosing.outstanding import NEWS_AFTER, REQUESTS, TOKEN, Outstanding
from gpustack.dataplane.choosing.shares import with_weight
from gpustack.dataplane.choosing.values import NO_HINTS, Hints, Outcome
from gpustack.plugin.routing import Route, RoutingTable, Target

log = logging.getLogger(__name__)

#: Seconds in which a new instance comes to its full share, and what it begins with.
_SLOW_START, _FIRST_SHARE = 30.0, 0.1
#: Seconds for which the counts of other processes may be old, where they have any.
_FRESH = 0.002
_ENDLESS = 1 << 63
#: Instances that may be called ill before anybody asks for them; nobody says when one is gone for good.
_MOST_REPORTED = 10_000


class Chooser:
    """Chooses, counts, and learns who fails. For one thread; nothing of it waits.

    ``clock`` gives seconds and never goes back; ``wall`` gives seconds since the epoch, in which a target's
    ``ready_at`` is told. ``shared`` counts together with other processes; without it this one counts alone.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
        shared: Outstanding | None = None,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._random = (rng or Random()).random
        self._outstanding = shared or Outstanding()
        self._affinity = Affinity(self._outstanding.holders)
        self._shared = self._outstanding.shared
        self._wall = wall
        self._table = RoutingTable()
        #: Of the routes that were asked for: what nobody asks for takes no memory.
        self._routes: dict[str, Known] = {}
        self._instances: dict[int, Instance] = {}
        self._ill: set[Instance] = set()
        self._reported_ill: set[int] = set()
        #: No route leads there any more, but requests may still run.
        self._leaving: set[Instance] = set()
        #: Instances that were ejected since the start, each time counted.
        self.ejections = 0

    def apply(self, table: RoutingTable) -> None:
        """Go by ``table`` from now on. Routes that are the same objects as before cost next to nothing.

        A route that is another object costs some ten microseconds if it is equal, some fifty if it changed.
        """
        self._table = table
        routes = table.routes
        for name, known in list(self._routes.items()):
            route = routes.get(name)
            if route is known.route:
                continue
            if route is None:
                del self._routes[name]
                self._leave(known)
            elif route == known.route:
                known.route = route
            else:
                self._routes[name] = self._learn(route, known)
                self._leave(known)
        self._forget()

    def pick(self, route: Route, hints: Hints = NO_HINTS, without: Collection[int] = ()) -> Lease | None:
        """Return a lease of the best target whose instance is not in ``without``; None when there is none.

        ``without`` are the instances that this request has tried. Ejected ones are asked rather than nobody.
        """
        return self.pick_of(self._routes.get(route.name) or self._remember(route), hints, without)

    def known(self, route: Route) -> Known:
        """Return what is known here of ``route``, which the table has; it stands for it until the next table that has another."""
        return self._routes.get(route.name) or self._remember(route)

    def pick_of(self, known: Known, hints: Hints = NO_HINTS, without: Collection[int] = ()) -> Lease | None:
        """Do the same as :meth:`pick` for a route that is :meth:`known`."""
        now = self._clock()
        if now >= known.fresh_until and (self._shared or known.large):
            self._refresh(known, now)
        ill = self._ill
        if without or now < known.warm_at or not known.plain or (ill and not ill.isdisjoint(known.instances)):
            return self._pick_among(known, hints, without, now)
        if known.large:
            return self._pick_of_two(known, hints, now)
        least = None
        low = _ENDLESS
        total = 0
        for member in known.turn:
            load = member.tally.total
            total += load
            if load < low:
                low = load
                least = member
        if least is None:
            return None
        return self._place(known, hints, least, low, total // len(known.members), known.members, now)

    def report(self, instance_id: int, healthy: bool) -> None:
        """Take note of what a worker's probe found. A worker that finds it well again makes an ejected one half open."""
        instance = self._instances.get(instance_id)
        if healthy:
            self._reported_ill.discard(instance_id)
        else:
            self._reported_ill.add(instance_id)
            if len(self._reported_ill) > _MOST_REPORTED:
                self._reported_ill.intersection_update(self._instances)
        if instance is None or instance.reported_ill is not healthy:
            return
        instance.reported_ill = not healthy
        if healthy:
            instance.until = self._clock()
        self._sort(instance)

    def load(self) -> dict[int, int]:
        """Return for each instance how many requests this process itself has there."""
        return {each.id: each.tally.own & REQUESTS for each in self._instances.values()}

    def describe(self) -> list[tuple[int, int, int, str]]:
        """Return for each instance its id, its requests and tokens in flight, and ``well``, ``ejected`` or ``ill``."""
        return [
            (
                each.id,
                each.tally.total & REQUESTS,
                each.tally.total // TOKEN,
                "ill" if each.reported_ill else "ejected" if each.ejected else "well",
            )
            for each in self._instances.values()
        ]

    # --- the choice -------------------------------------------------------------------------------

    def _pick_of_two(self, known: Known, hints: Hints, now: float) -> Lease:
        members = known.members
        count = len(members)
        first = int(self._random() * count)
        second = (first + 1 + int(self._random() * (count - 1))) % count
        one, other = members[first], members[second]
        least = one if one.tally.total <= other.tally.total else other
        return self._place(known, hints, least, least.tally.total, known.mean, members, now)

    def _pick_among(self, known: Known, hints: Hints, without: Collection[int], now: float) -> Lease | None:
        """Choose with all the care that ills, weights and slow starts need; some microseconds more."""
        members: Sequence[Member] = [each for each in known.turn if each.instance.id not in without]
        if not members:
            return None
        if self._ill:
            members, probe = _well(members, now)
            if probe is not None:
                lease = self._place(known, hints, probe, 0, 0, (), now)
                lease.probe = probe.instance.probing = True
                return lease
        members = with_weight(members)
        if not known.plain:
            members = known.shares.narrow(members, self._affinity.holding(known, hints))
        loads = [_load(member, now) for member in members]
        low = min(loads)
        return self._place(
            known, hints, members[loads.index(low)], low, sum(loads) // len(loads), members, now
        )

    def _place(
        self,
        known: Known,
        hints: Hints,
        least: Member,
        low: int,
        mean: int,
        among: Sequence[Member],
        now: float,
    ) -> Lease:
        """Take a holder of the prefix if it may be, else ``least``, whose load is ``low``; with no others, just it.

        The request is counted there, with the part of its prompt that has to be read.
        """
        tokens = hints.tokens
        if among and known.several:
            if low & REQUESTS >= least.slots:
                least = _with_room(among) or least
            if hints.marks or hints.session:
                least, saved = self._affinity.choose(known, hints, least, low, mean, among, now)
                tokens -= saved
        known.turn = least.then
        answer = known.output
        if 0 < hints.max_tokens < answer:
            answer = hints.max_tokens
        tokens *= TOKEN
        expected = int(answer) * (ANSWER * TOKEN)
        instance = least.instance
        least.tally.add(tokens + expected + 1)
        return Lease(least.target, instance, instance.ejections, known, tokens, expected, self._ended)

    def _refresh(self, known: Known, now: float) -> None:
        others = self._outstanding.refresh(known.tallies, now)
        known.fresh_until = now + (_FRESH if others or known.large else NEWS_AFTER)
        if known.large:
            known.mean = sum(tally.total for tally in known.tallies) // len(known.tallies)

    # --- what is learned --------------------------------------------------------------------------

    def _ended(self, lease: Lease, outcome: Outcome) -> None:
        """Take note of what an attempt tells of its instance."""
        instance = lease.instance
        # A probe of an ejection that is over decides nothing about the next one.
        probe = lease.probe and lease.since == instance.ejections
        lease.probe = False
        if probe:
            instance.probing = False
        if outcome is Outcome.CLIENT_LEFT:
            return
        if outcome is Outcome.OK:
            if not instance.ejected:
                instance.succeeded()
            elif lease.since == instance.ejections:
                instance.restore(self._clock())
                self._sort(instance)
                log.info("instance %d: answers again", instance.id)
            return
        refused = outcome is Outcome.CONNECT_FAILED
        if instance.failed(self._clock(), refused=refused, probe=probe, random=self._random):
            self.ejections += 1
            self._sort(instance)
            wait = instance.until - self._clock()
            log.warning("instance %d: left out for %.0f s, for its %s", instance.id, wait, outcome.value)

    def _sort(self, instance: Instance) -> None:
        if instance.ill:
            self._ill.add(instance)
        else:
            self._ill.discard(instance)

    # --- the table --------------------------------------------------------------------------------

    def _remember(self, route: Route) -> Known:
        """Take in a route that is asked for the first time, or was removed while a request for it waited."""
        route = self._table.routes.get(route.name, route)
        self._routes[route.name] = known = self._learn(route, None)
        return known

    def _learn(self, route: Route, before: Known | None) -> Known:
        members = [self._member(target, before) for target in route.targets]
        known = Known(route, members, before)
        for instance in known.instances:
            instance.uses += 1
        return known

    def _leave(self, known: Known) -> None:
        for instance in known.instances:
            instance.uses -= 1
            if not instance.uses:
                self._leaving.add(instance)

    def _member(self, target: Target, before: Known | None) -> Member:
        number = target.instance_id
        instance = self._instances.get(number)
        if instance is None:
            ill = number in self._reported_ill
            instance = Instance(number, self._outstanding.tally(number), reported_ill=ill)
            self._instances[number] = instance
            self._sort(instance)
        same = before.by_key.get(instance.key) if before else None
        if same is not None and same.target.ready_at == target.ready_at:
            return Member(target, instance, same.warm_at)
        left = target.ready_at + _SLOW_START - self._wall() if target.ready_at else 0.0
        # A clock that is ahead must not make the start longer.
        return Member(target, instance, self._clock() + min(left, _SLOW_START) if left > 0 else 0.0)

    def _forget(self) -> None:
        """Drop the instances that no route leads to, once nothing runs there."""
        for instance in list(self._leaving):
            if instance.uses:
                self._leaving.discard(instance)
            elif not instance.tally.own:
                self._leaving.discard(instance)
                self._ill.discard(instance)
                self._reported_ill.discard(instance.id)
                del self._instances[instance.id]
                self._outstanding.release(instance.id, instance.tally)


def _well(members: Sequence[Member], now: float) -> tuple[Sequence[Member], Member | None]:
    """Return who may be asked, and an ejected one that this request is to try, if any.

    When most would be left out, those that only failed are asked all the same: maybe it was the requests. Those where
    nobody listens, or that their worker calls ill, are asked only when there is nobody else.
    """
    fine = [member for member in members if not member.instance.ill]
    for member in members:
        if member.instance.half_open(now) and (member.target.weight > 0 or not fine):
            return members, member
    if 2 * len(fine) < len(members):
        fine = [member for member in members if not member.instance.ill or member.instance.doubtful]
    return fine or members, None


def _load(member: Member, now: float) -> int:
    """Return what a member has to do, seen as more while it starts slowly."""
    load = member.tally.total
    left = member.warm_at - now
    if left <= 0:
        return load
    share = max(_FIRST_SHARE, 1.0 - left / _SLOW_START)
    return int((load + _ONE_REQUEST) / share)


_ONE_REQUEST = 1024 * TOKEN + 1


def _with_room(members: Sequence[Member]) -> Member | None:
    """Return who has the least to do among those whose engine has a slot free."""
    room = [each for each in members if each.tally.total & REQUESTS < each.slots]
    return min(room, key=lambda each: each.tally.total, default=None)
