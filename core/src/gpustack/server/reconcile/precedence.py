"""Whose room goes to an instance of higher priority that fits nowhere: that which comes free anyway, then others'.

That room is promised. Until the promise is kept or withdrawn, lower priorities find it taken, also the part of it that
is free already: else whoever comes in the place of a victim would take it, and have to leave again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import inf

from gpustack.scheduling import Holding, Placed, Preemption, Request
from gpustack.schemas import ModelInstancePublic
from gpustack.server.reconcile.notes import Promise
from gpustack.server.reconcile.state import State

#: What instances are looked at by: those of higher priority first, equal ones by age.
Rank = tuple[int, float]


def rank(state: State, instance: ModelInstancePublic) -> Rank:
    """Return the place of an instance among those that wait."""
    model = state.models.get(instance.model_id)
    return -model.priority if model is not None else 0, instance.id


@dataclass(slots=True)
class Promises:
    """What leaves, or is to leave, and who gets its room; of one look at all that wait."""

    leaving: set[int] = field(default_factory=set)
    #: What should have left long ago. It is not counted on, and nobody can make it leave.
    stuck: set[int] = field(default_factory=set)
    #: By the instance that the room is promised to.
    given: dict[int, Promise] = field(default_factory=dict)
    #: Those that nobody found taken yet, by the rank after which they are.
    _ahead: list[tuple[Rank, int]] = field(default_factory=list)
    _held: set[int] = field(default_factory=set)
    #: Of what leaves on a worker, what the promises that are held take the place of: RAM, and memory by GPU.
    _replaced: dict[int, dict[int | None, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, now: float) -> Promises:
        """Return the promises before anybody is looked at: earlier ones, and what drains already leaves."""
        promises = cls()
        for number in (each for some in state.draining.values() for each in some):
            due = state.due(state.instances[number])
            late = due is not None and due + state.limits.slack <= now
            (promises.stuck if late else promises.leaving).add(number)
        for number, promise in state.promises.items():
            if now < promise.until and number in state.instances:
                promises.given[number] = promise
                promises._ahead.append((_after(promise), number))
        heapify(promises._ahead)
        return promises

    def give(self, instance_id: int, promise: Promise | None) -> None:
        """Promise this to the instance in place of what it was promised before."""
        self.given.pop(instance_id, None)
        if promise is not None:
            self.given[instance_id] = promise
            heappush(self._ahead, (_after(promise), instance_id))

    def hold(self, state: State, before: Rank) -> None:
        """Let whoever has this rank, or a later one, find taken what is promised. For a trial, in the order of ranks."""
        while self._ahead and self._ahead[0][0] < before:
            _, number = heappop(self._ahead)
            if (promise := self.given.get(number)) is None or number in self._held:
                continue
            self._held.add(number)
            for holding in promise.holdings:
                if (more := self._beyond(state, holding)) is not None:
                    state.fleet.hold(more)

    def _beyond(self, state: State, promised: Holding) -> Holding | None:
        """Return what of a promise is not the room of those that leave, as far as they hold it still."""
        worker_id = promised.worker_id
        there: dict[int | None, int] = {}
        for each in state.fleet.held_on(worker_id):
            if each.instance_id in self.leaving:
                for key, size in _parts(each).items():
                    there[key] = there.get(key, 0) + size
        replaced = self._replaced.setdefault(worker_id, {})
        more: dict[int | None, int] = {}
        for key, size in _parts(promised).items():
            theirs = min(size, max(0, there.get(key, 0) - replaced.get(key, 0)))
            replaced[key] = replaced.get(key, 0) + theirs
            more[key] = size - theirs
        ram = more.pop(None)
        vram = {key: size for key, size in more.items() if key is not None and size}
        return replace(promised, ram=ram, vram=vram) if ram or vram else None


@dataclass(frozen=True, slots=True)
class Precedence:
    """What an instance waits for. ``victims`` are to be drained, the others of ``leaving`` drain already."""

    leaving: tuple[int, ...]
    room: tuple[Holding, ...]
    victims: tuple[int, ...] = ()


def precedence(state: State, promises: Promises, request: Request) -> Precedence | None:
    """Return whose room ``request``, which fits nowhere now, is to get; None when that helps nothing.

    Only instances of a lower priority are made to leave.
    """
    fleet, mine = state.fleet, (-request.priority, request.instance_id)
    with fleet.trial():
        for each in promises.leaving:
            fleet.release(each)
        for each in promises.stuck:
            for holding in fleet.holdings(each):
                fleet.hold(replace(holding, priority=request.priority))
        for number, promise in promises.given.items():
            if (-promise.priority, number) < mine:
                for holding in promise.holdings:
                    fleet.hold(holding)
        answer = fleet.place(request)
        if isinstance(answer, Placed):
            found = Preemption(placed=answer, victims=())
        elif (preemption := fleet.preempt(request)) is not None:
            found = preemption
        else:
            return None
    room = found.placed.holdings()
    leaving = {*found.victims, *_on(state, promises.leaving, {each.worker_id for each in room})}
    promises.leaving.update(found.victims)
    return Precedence(tuple(sorted(leaving)), room, found.victims)


def promise_of(state: State, found: Precedence, request: Request, now: float) -> Promise:
    """Return what is promised: until all have left whose time to drain it takes, and a while more."""
    before = state.promises.get(request.instance_id)
    dues = [_due(state, each, now) for each in found.leaving]
    return Promise(
        priority=request.priority,
        holdings=found.room,
        bought=bool(found.victims) or (before is not None and before.bought),
        until=max(dues, default=now) + state.limits.slack,
    )


def _due(state: State, instance_id: int, now: float) -> float:
    instance = state.instances[instance_id]
    if instance.draining_since is not None and (due := state.due(instance)) is not None:
        return due
    model = state.models.get(instance.model_id)
    return now + (0 if model is None else model.rollout.drain_seconds) + state.limits.slack


def _after(promise: Promise) -> Rank:
    """Return the rank after which a promise counts: what others had to leave for counts for equal ones too."""
    number = promise.holdings[0].instance_id
    return -promise.priority, number if promise.bought else inf


def _parts(holding: Holding) -> dict[int | None, int]:
    parts: dict[int | None, int] = {None: holding.ram}
    parts.update(holding.vram.items())
    return parts


def _on(state: State, instances: Iterable[int], workers: Iterable[int]) -> set[int]:
    there = {held.instance_id for worker in workers for held in state.fleet.held_on(worker)}
    return there.intersection(instances)
