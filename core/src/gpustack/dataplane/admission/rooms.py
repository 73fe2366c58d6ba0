"""What a route is to admission, and the room that a model has for requests, whatever routes they come by."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpustack.dataplane.admission.buckets import Buckets
from gpustack.dataplane.admission.fair import FairQueue
from gpustack.dataplane.admission.turns import Ticket
from gpustack.dataplane.admission.values import Rules
from gpustack.plugin.routing import Route, Target


class Pool:
    """One model's slots, and who waits for them."""

    __slots__ = ("_rate_at", "buckets", "capacity", "instances", "name", "override", "queue", "rate", "rooms", "row", "running", "settling", "targets", "tokens", "waiting")  # fmt: skip

    def __init__(self, name: str, rules: Rules, buckets: Buckets) -> None:
        self.name = name
        self.buckets = buckets
        self.row = buckets.row(("model", name)) if buckets.shared else -1
        self.running = 0
        #: Requests that wait, and their tokens.
        self.waiting = 0
        self.tokens = 0
        self.queue: FairQueue[Ticket] = FairQueue(rules.patience)
        #: The routes that lead here and were asked for.
        self.rooms: dict[str, Room] = {}
        self.override: int | None = None
        self.settling = False
        #: Tokens granted a second, lately, for telling when to come again.
        self.rate = 0.0
        self._rate_at = 0.0
        self.change(())

    def change(self, targets: Iterable[Target]) -> None:
        """Take what a table says of the instances."""
        there = list(targets)
        self.targets = len(there)
        self.instances = tuple(each.instance_id for each in there)
        known = [each.slots for each in there if each.slots is not None]
        #: None: nobody knows, so that nothing waits here.
        self.capacity = sum(known) if len(known) == len(there) else None
        if self.override is not None and there:
            self.capacity = self.override

    @property
    def has_room(self) -> bool:
        """Whether one more may run now."""
        if self.capacity is None:
            return True
        running = self.buckets.running(self.row) if self.row >= 0 else self.running
        return running < self.capacity

    def run(self, change: int) -> None:
        """Note that one more runs, or one less."""
        self.running += change
        if self.row >= 0:
            self.buckets.run(self.row, change)

    def granted(self, tokens: int, now: float) -> None:
        """Note how fast the queue moves: an average over about ten seconds."""
        passed = max(now - self._rate_at, 1e-3)
        self._rate_at = now
        keep = max(0.0, 1.0 - passed / 10.0)
        self.rate = self.rate * keep + (tokens / passed) * (1.0 - keep)

    def again_after(self) -> float:
        """Return in how many seconds half of what waits will probably be gone."""
        return min(60.0, max(1.0, self.tokens / 2 / self.rate)) if self.rate > 0 else 5.0


class Room:
    """One route: the pools that it leads to, and what of it runs and waits there."""

    __slots__ = ("_bound", "_most", "asked", "asleep", "gone", "name", "obstacle", "pool", "pools", "route", "running", "several", "targets", "tokens", "waiting", "waits", "woken_at")  # fmt: skip

    def __init__(self, route: Route) -> None:
        self.name = route.name
        self.running = 0
        #: Requests that have come in all.
        self.asked = 0
        #: Requests that wait, and their tokens.
        self.waiting = 0
        self.tokens = 0
        self.woken_at = -math.inf
        #: Where requests may go and wait: of several models those that have a share, unless none has one.
        self.pools: tuple[Pool, ...] = ()
        #: The only pool, where there is one.
        self.pool: Pool | None = None
        self.several = False
        self.gone = False

    def change(self, route: Route, rules: Rules) -> None:
        """Take what a new table says of it."""
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

    def not_first(self, pool: Pool | None) -> tuple[int, ...]:
        """Return the instances of all pools but ``pool``; with None, of those that have no room."""
        return tuple(
            number
            for each in self.pools
            if (each is not pool if pool is not None else not each.has_room)
            for number in each.instances
        )

    def free(self) -> bool:
        """Tell whether a request may go on now. Where something waits already, it would overtake that."""
        return any(each.targets and not each.waiting and each.has_room for each in self.pools)

    def shortest(self) -> Pool:
        """Return the pool where one waits the least, as far as anybody can tell."""
        return min(self.pools, key=lambda each: each.tokens / max(1, each.capacity or each.targets))

    def takes(self, pool: Pool, tokens: int) -> bool:
        """Tell whether ``tokens`` more may wait. One request alone always may, unless none is to wait at all."""
        count = max(1, pool.targets)
        if pool.waiting >= self._most * count:
            return False
        return not pool.waiting or pool.tokens + tokens <= self._bound * count

    def full(self, pool: Pool, tokens: int) -> str:
        """Say why ``tokens`` more may not wait, as a sentence."""
        count = max(1, pool.targets)
        if not self._most:
            return f"model {self.name} is busy, and nothing may wait for it"
        waiting = f"{pool.waiting} request{'s' if pool.waiting > 1 else ''}"
        if pool.waiting >= self._most * count:
            return f"model {self.name} has {waiting} waiting, which is all its queue takes"
        return (
            f"model {self.name} has {waiting} of about {pool.tokens} tokens waiting; its queue takes "
            f"{self._bound * count} tokens, and this one is of about {tokens}"
        )


def by_model(route: Route) -> dict[str, list[Target]]:
    """Return the models that ``route`` leads to, with the targets of each; without any, where to wait for one."""
    found: dict[str, list[Target]] = {}
    for target in route.targets:
        found.setdefault(target.model or route.name, []).append(target)
    return found or {route.models[0] if route.models else route.name: []}
