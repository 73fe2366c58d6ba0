"""Whose turn it is: start-time fair queueing by tokens, with priorities above it.

Each flow (the requests of one principal) has a tag, in tokens divided by its weight: the virtual time at which it may
go on. The flow with the lowest tag goes next and its tag grows by the tokens that it takes, so that who sends many or
long requests waits for those who send few. The virtual time is the tag of who went last; a flow that comes anew begins
there, and cannot save up turns.

Priorities are levels: the highest that waits goes first. A lower level that has let ``patience`` turns pass gets the
next one, so that with n levels waiting the lowest gets one of ``patience`` + n turns at least.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """Something in a queue."""

    tokens: int
    #: Set from outside when it does not want its turn any more.
    gone: bool


W = TypeVar("W", bound=Waits)


class _Flow(Generic[W]):
    __slots__ = ("entry", "tag", "waiting", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = max(1, weight)
        self.tag = 0.0
        #: The number of its entry in the heap; others are old.
        self.entry = 0
        self.waiting: deque[W] = deque()


class _Level(Generic[W]):
    """The flows of one priority."""

    __slots__ = ("flows", "heap", "number", "passed", "virtual")

    def __init__(self) -> None:
        self.flows: dict[object, _Flow[W]] = {}
        #: Of (tag, number, flow): one entry for each flow in which something waits, and old ones.
        self.heap: list[tuple[float, int, _Flow[W]]] = []
        self.number = 0
        self.virtual = 0.0
        #: Turns that went to higher levels while something waited here.
        self.passed = 0

    def add(self, key: object, weight: int, item: W) -> None:
        flow = self.flows.get(key)
        if flow is None:
            flow = self.flows[key] = _Flow(weight)
        flow.weight = max(1, weight)
        flow.waiting.append(item)
        if len(flow.waiting) == 1:
            flow.tag = max(flow.tag, self.virtual)
            self._push(flow)

    def _push(self, flow: _Flow[W]) -> None:
        self.number += 1
        flow.entry = self.number
        heapq.heappush(self.heap, (flow.tag, self.number, flow))

    def first(self) -> W | None:
        """Return who goes next, without those who are gone."""
        while self.heap:
            _, number, flow = self.heap[0]
            if number == flow.entry:
                while flow.waiting and flow.waiting[0].gone:
                    flow.waiting.popleft()
                if flow.waiting:
                    return flow.waiting[0]
            heapq.heappop(self.heap)
        # Nobody waits: who comes next begins anew.
        self.flows.clear()
        self.virtual = 0.0
        self.passed = 0
        return None

    def take(self) -> None:
        """Give the turn to who is first."""
        tag, _, flow = heapq.heappop(self.heap)
        item = flow.waiting.popleft()
        self.virtual = tag
        flow.tag = tag + item.tokens / flow.weight
        if flow.waiting:
            self._push(flow)

    def correct(self, key: object, tokens: int) -> None:
        flow = self.flows.get(key)
        if flow is not None:
            flow.tag = max(self.virtual, flow.tag + tokens / flow.weight)
            if flow.waiting:
                self._push(flow)


class FairQueue(Generic[W]):
    """Who waits for one model. Nothing is granted here: whoever has room for one more asks :meth:`pop`."""

    __slots__ = ("_levels", "_order", "_patience")

    def __init__(self, patience: int = 8) -> None:
        self._patience = patience
        self._levels: dict[int, _Level[W]] = {}
        self._order: list[int] = []

    def add(self, key: object, item: W, *, weight: int = 100, priority: int = 0) -> None:
        """Queue ``item`` in the flow ``key``. Its ``tokens`` must not change, ``gone`` may become true."""
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            self._order = sorted(self._levels, reverse=True)
        level.add(key, weight, item)

    def pop(self) -> W | None:
        """Return whose turn it is, None when nobody waits."""
        chosen: _Level[W] | None = None
        item: W | None = None
        waiting: list[_Level[W]] = []
        for priority in self._order:
            level = self._levels[priority]
            first = level.first()
            if first is None:
                continue
            waiting.append(level)
            if item is None or (chosen is not None and level.passed >= max(self._patience, chosen.passed)):
                chosen, item = level, first
        if chosen is None:
            if self._levels:
                self._levels.clear()
                self._order.clear()
            return None
        chosen.take()
        for level in waiting:
            level.passed += 1
        chosen.passed = 0
        return item

    def correct(self, key: object, tokens: int, *, priority: int = 0) -> None:
        """Charge the flow ``key`` with ``tokens`` more, or less when negative, than its request was thought to take."""
        level = self._levels.get(priority)
        if level is not None:
            level.correct(key, tokens)
