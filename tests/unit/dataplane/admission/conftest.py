from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpustack.dataplane.admission import Admission, Buckets, Refusal, Rules, Ticket
from gpustack.plugin.routing import Limits, Principal, Route, RoutingTable, Target


class Time:
    """A clock that stands until somebody moves it, and its timers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._number = 0

    def __call__(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        self._number += 1
        timer = _Timer(callback)
        heapq.heappush(self._timers, (when, self._number, timer))
        return timer

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if not timer.off:
                timer.callback()
        self.now = end

    @property
    def set(self) -> int:
        return sum(not timer.off for _, _, timer in self._timers)


@dataclass
class _Timer:
    callback: Callable[[], object]
    off: bool = False

    def cancel(self) -> None:
        self.off = True


@dataclass
class Asked:
    """One request and what it was told."""

    name: str
    ticket: Ticket = field(init=False)
    waited: float | None = None
    refusal: Refusal | None = None

    @property
    def told(self) -> str:
        assert self.waited is None or self.refusal is None
        if self.refusal is not None:
            return f"{self.refusal.status} {self.refusal.reason}"
        return "waits" if self.waited is None else "goes on"


class Gate:
    """An admission with its surroundings."""

    def __init__(self, time: Time, shared: Buckets | None = None, processes: int = 1, **rules: Any) -> None:
        self.time = time
        self.woken: list[str] = []
        self.order: list[str] = []
        self.admission = Admission(
            time,
            time,
            shared,
            processes=processes,
            rules=Rules(**rules),
            wake=lambda route: self.woken.append(route.name),
        )
        self.routes: dict[str, Route] = {}

    def serve(self, name: str = "m", slots: int | None = 1, count: int = 1, **more: Any) -> Route:
        targets = tuple(Target(instance_id=n, host="h", port=1, slots=slots) for n in range(count))
        return self.change(Route(name=name, created=0, targets=targets, **more))

    def change(self, route: Route) -> Route:
        self.routes = {**self.routes, route.name: route}
        self.admission.apply(RoutingTable(version=len(self.routes), routes=self.routes))
        return route

    def ask(self, who: Principal, tokens: int = 10, *, route: str = "m", name: str = "") -> Asked:
        asked = Asked(name or who.username)

        def granted(waited: float) -> None:
            asked.waited = waited
            self.order.append(asked.name)

        def refused(refusal: Refusal) -> None:
            asked.refusal = refusal

        asked.ticket = self.admission.ask(who, self.routes[route], tokens, granted, refused)
        return asked


def a_principal(name: str = "anna", key: int | None = None, **limits: Any) -> Principal:
    return Principal(user_id=sum(name.encode()), username=name, key_id=key, limits=Limits(**limits))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def gate(time: Time) -> Gate:
    return Gate(time)


@pytest.fixture(name="a_principal")
def _a_principal() -> Callable[..., Principal]:
    return a_principal


@pytest.fixture(name="a_gate")
def _a_gate() -> type[Gate]:
    return Gate
