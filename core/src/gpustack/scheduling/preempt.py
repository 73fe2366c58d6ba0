"""Who is to leave for a request of higher priority that fits nowhere.

As few as can be, and of the lowest priority: nobody is named who could stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from gpustack.scheduling.filters import PIPELINE, sift
from gpustack.scheduling.plan import Packing, Placed, miss, place
from gpustack.scheduling.request import Offer, Request
from gpustack.scheduling.snapshot import Holding, Room, Snapshot

#: Workers that are compared: the nearest misses, of which the first are most often the best.
MOST_COMPARED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """Where the request goes once ``victims`` have left: the ids of instances, each of a lower priority."""

    placed: Placed
    victims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    key: tuple[object, ...]
    preemption: Preemption


def preempt(snapshot: Snapshot, request: Request, packing: Packing = Packing.WHOLE) -> Preemption | None:
    """Return who is to leave so that ``request``, which fits nowhere, does; None when nobody's leaving helps.

    Of the plans on single workers the best is that whose victims have the lowest priority, then that with the fewest,
    then that which does the least harm, then the worker with the smaller id; :data:`MOST_COMPARED` are compared. An
    instance on several workers takes the place of all those up to the lowest priority that is enough, then leaves alone
    who can stay.
    """
    lower = _lower(snapshot, request)
    if not lower:
        return None
    plans = [*_on_one(snapshot, request, packing, lower)]
    if not plans:
        plans = [*_on_many(snapshot, request, packing, lower)]
    return min(plans, key=lambda each: each.key).preemption if plans else None


def _lower(snapshot: Snapshot, request: Request) -> dict[int, Holding]:
    """Return one holding of each instance that may have to leave."""
    return {
        each.instance_id: each
        for room in snapshot.rooms.values()
        for each in room.holdings
        if each.priority < request.priority
    }


def _on_one(
    snapshot: Snapshot, request: Request, packing: Packing, lower: Mapping[int, Holding]
) -> Iterator[_Plan]:
    """Yield plans for one worker, the nearest misses first."""
    alone = _without_gangs(request)
    verdicts = sift((room.worker for room in snapshot.rooms.values()), alone, PIPELINE)
    rooms = [snapshot.rooms[worker.id] for worker in verdicts.passed]
    crowded = [room for room in rooms if any(each.instance_id in lower for each in room.holdings)]
    found = 0
    for room in sorted(crowded, key=lambda room: (_away(room, alone), room.worker.id)):
        one = Snapshot({room.worker.id: room})
        here = [each for each in room.holdings if each.instance_id in lower]
        plan = _spare(one, here, lambda some: place(some, alone, packing))
        if plan is None:
            continue
        worker_id = room.worker.id
        yield _Plan((worker_id in request.avoid, *_cost(plan, lower), worker_id), plan)
        found += 1
        if found == MOST_COMPARED:
            return


def _away(room: Room, request: Request) -> int:
    return miss(room, request).distance


def _on_many(
    snapshot: Snapshot, request: Request, packing: Packing, lower: Mapping[int, Holding]
) -> Iterator[_Plan]:
    """Yield the plan for several workers, if there is one."""
    for most in sorted({each.priority for each in lower.values()}):
        leaving = [each for each in lower.values() if each.priority <= most]
        placed = place(_released(snapshot, (each.instance_id for each in leaving)), request, packing)
        if not isinstance(placed, Placed):
            continue
        # Only those on the workers that it goes to have to leave, if at all.
        taken = {each.worker_id for each in placed.holdings()}
        few = Snapshot({each: snapshot.rooms[each] for each in sorted(taken)})
        ids = {each.instance_id for each in leaving}
        here = {
            each.instance_id: each
            for room in few.rooms.values()
            for each in room.holdings
            if each.instance_id in ids
        }
        plan = _spare(few, here.values(), lambda some: place(some, request, packing))
        if plan is not None:
            yield _Plan(_cost(plan, lower), plan)
        return


def _spare(
    snapshot: Snapshot, leaving: Iterable[Holding], try_out: Callable[[Snapshot], object]
) -> Preemption | None:
    """Let all of ``leaving`` go, then call back whoever can stay: first those of higher priority, then the more missed."""
    gone = sorted(leaving, key=lambda each: (-each.priority, -each.harm, each.instance_id))
    victims = {each.instance_id for each in gone}
    placed = try_out(_released(snapshot, victims))
    if not isinstance(placed, Placed):
        return None
    for each in gone:
        answer = try_out(_released(snapshot, victims - {each.instance_id}))
        if isinstance(answer, Placed):
            victims.discard(each.instance_id)
            placed = answer
    return Preemption(placed=placed, victims=tuple(sorted(victims)))


def _released(snapshot: Snapshot, instance_ids: Iterable[int]) -> Snapshot:
    gone = set(instance_ids)
    return Snapshot(
        {
            number: Room.of(room.worker, (each for each in room.holdings if each.instance_id not in gone))
            if any(each.instance_id in gone for each in room.holdings)
            else room
            for number, room in snapshot.rooms.items()
        }
    )


def _cost(plan: Preemption, lower: Mapping[int, Holding]) -> tuple[object, ...]:
    victims = [lower[each] for each in plan.victims]
    return (
        max((each.priority for each in victims), default=0),
        len(victims),
        sum(each.harm for each in victims),
    )


def _without_gangs(request: Request) -> Request:
    """Return the request with only those ways that need one worker."""

    def alone(offer: Offer) -> Offer:
        ways = tuple(way for way in offer.ways if not way.followers)
        return offer if len(ways) == len(offer.ways) else replace(offer, ways=ways)

    return replace(
        request,
        offers={number: alone(each) for number, each in request.offers.items()},
        kinds={kind: alone(each) for kind, each in request.kinds.items()},
    )
