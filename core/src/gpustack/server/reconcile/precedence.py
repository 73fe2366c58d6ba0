"""Whose room goes to an instance of higher priority that fits nowhere: that which comes free anyway, then others'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gpustack.scheduling import Holding, Placed, Preemption, Request
from gpustack.server.reconcile.state import State


@dataclass(slots=True)
class Promises:
    """What leaves, or is to leave, and who gets its room; of one look at all that wait."""

    leaving: set[int] = field(default_factory=set)
    given: list[Holding] = field(default_factory=list)

    @classmethod
    def of(cls, state: State) -> Promises:
        """Return the promises before anybody is looked at: what drains already leaves."""
        return cls(leaving={number for some in state.draining.values() for number in some})


@dataclass(frozen=True, slots=True)
class Precedence:
    """What an instance waits for. ``victims`` are to be drained, the others of ``leaving`` drain already."""

    leaving: tuple[int, ...]
    victims: tuple[int, ...] = ()


def precedence(state: State, promises: Promises, request: Request) -> Precedence | None:
    """Return whose room ``request``, which fits nowhere now, is to get; None when that helps nothing.

    Its room is promised from then on. Only instances of a lower priority are made to leave.
    """
    fleet = state.fleet
    with fleet.trial():
        for each in promises.leaving:
            fleet.release(each)
        for holding in promises.given:
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
    promises.given += room
    return Precedence(tuple(sorted(leaving)), found.victims)


def _on(state: State, instances: Iterable[int], workers: Iterable[int]) -> set[int]:
    there = {held.instance_id for worker in workers for held in state.fleet.held_on(worker)}
    return there.intersection(instances)
