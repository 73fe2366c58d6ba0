"""A chooser over a few targets, with a clock and random numbers of the test's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from random import Random
from typing import Any

import pytest

from gpustack.dataplane.choosing import Chooser, Hints, Lease, Outcome, Outstanding
from gpustack.plugin.routing import Route, RoutingTable, Target


class Site:
    """One route named ``m`` and who chooses for it. ``now`` is the time of both of its clocks."""

    def __init__(self, shared: Outstanding | None = None) -> None:
        self.now = 1000.0
        self.version = 0
        self.chooser = Chooser(lambda: self.now, Random(7), shared, wall=lambda: self.now)
        self.route = self.a_route(2)

    @staticmethod
    def a_route(
        count: int, *, name: str = "m", weights: Collection[int] = (), first: int = 1, **of_targets: Any
    ) -> Route:
        shares = tuple(weights) or (100,) * count
        targets = tuple(
            Target(instance_id=first + number, host="h", port=first + number, weight=share, **of_targets)
            for number, share in enumerate(shares)
        )
        return Route(name=name, created=0, targets=targets)

    def serve(self, *routes: Route) -> Route:
        """Apply a table of these routes; the first one is asked from now on."""
        self.version += 1
        self.route = routes[0]
        self.chooser.apply(RoutingTable(version=self.version, routes={route.name: route for route in routes}))
        return self.route

    def pick(self, hints: Hints | None = None, without: Collection[int] = ()) -> Lease:
        lease = self.chooser.pick(self.route, hints or Hints(tokens=100), without)
        assert lease is not None
        return lease

    def ask(
        self, outcome: Outcome = Outcome.OK, hints: Hints | None = None, without: Collection[int] = ()
    ) -> int:
        """Let one request run to its end; return who took it."""
        lease = self.pick(hints, without)
        lease.done(outcome)
        return lease.target.instance_id

    def asked(self, times: int, hints: Hints | None = None) -> Counter[int]:
        """Return how often each was asked, one after the other."""
        return Counter(self.ask(hints=hints) for _ in range(times))

    def fail(self, instance_id: int, outcome: Outcome, times: int) -> None:
        """Let requests fail at one instance."""
        others = {target.instance_id for target in self.route.targets} - {instance_id}
        for _ in range(times):
            self.ask(outcome, without=others)


@pytest.fixture
def site() -> Site:
    return Site()
