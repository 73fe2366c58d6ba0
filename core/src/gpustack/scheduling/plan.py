"""One decision by looking at every worker: slow, short, and what :class:`.fleet.Fleet` is held to by the tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.filters import PIPELINE, Step, Verdicts, sift
from gpustack.scheduling.fit import Deficit, Fit, as_met, deficit, fits, possible
from gpustack.scheduling.gang import Member, assign
from gpustack.scheduling.request import Request, Way, is_at
from gpustack.scheduling.scorers import SCORERS, Candidate, Scorer, best_fit
from gpustack.scheduling.snapshot import Holding, Room, Snapshot, Worker
from gpustack.schemas.models import PlacementStrategy

#: Workers whose reasons are kept one by one; of a large fleet the counts by filter say more.
MOST_NAMED = 8


class Packing(StrEnum):
    """What ``binpack`` goes by. Best fit is there to be compared with."""

    WHOLE = "whole"
    BEST_FIT = "best-fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one member of an instance gets on its worker; ``vram`` is bytes by GPU index, empty on the CPU."""

    worker_id: int
    ram: int
    vram: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the instance goes, and with what. Of several members this is the one that leads."""

    instance_id: int
    model_id: int
    worker_id: int
    way: Way
    ram: int
    #: Bytes by GPU index; empty on the CPU.
    vram: Mapping[int, int] = field(default_factory=dict)
    #: The other members, in the order of the way's followers.
    followers: tuple[Share, ...] = ()
    #: How many pieces of the claim each GPU got, by index; empty when it is spread evenly.
    pieces: Mapping[int, int] = field(default_factory=dict)
    priority: int = 0

    def holding(self) -> Holding:
        """Return what it holds from now on, on the worker of its leader."""
        return Holding(
            instance_id=self.instance_id,
            model_id=self.model_id,
            worker_id=self.worker_id,
            ram=self.ram,
            vram=self.vram,
            priority=self.priority,
        )

    def holdings(self) -> tuple[Holding, ...]:
        """Return what it holds from now on, on the workers of all its members."""
        if not self.followers:
            return (self.holding(),)
        followers = (
            Holding(
                instance_id=self.instance_id,
                model_id=self.model_id,
                worker_id=each.worker_id,
                ram=each.ram,
                vram=each.vram,
                priority=self.priority,
            )
            for each in self.followers
        )
        return (self.holding(), *followers)


@dataclass(frozen=True, slots=True)
class Named:
    """A worker that a refusal tells of, as it was then."""

    worker: Worker
    holdings: tuple[Holding, ...]
    #: The filter that it failed, by its place in the pipeline; None when only room is missing.
    failed: int | None = None

    def room(self) -> Room:
        """Return the worker with what was held there."""
        return Room.of(self.worker, self.holdings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why it fits nowhere now: how many workers each filter left, and of the nearest workers what is missing there.

    What is said of single workers is worked out when it is asked for: most refusals are never read.
    """

    request: Request
    workers: int
    steps: tuple[Step, ...] = ()
    #: Workers that passed all filters: only room is missing there.
    short: int = 0
    #: None of them could hold it even when nothing else ran there.
    too_large: bool = False
    #: The nearest misses, then those left out that came furthest; at most :data:`MOST_NAMED`.
    named: tuple[Named, ...] = ()

    @property
    def for_room_only(self) -> bool:
        """Tell whether memory is all that is missing somewhere."""
        return self.short > 0

    @property
    def deficits(self) -> Mapping[int, Deficit]:
        """Return by worker id what is missing, of the nearest misses."""
        return {each.worker.id: miss(each.room(), self.request) for each in self.named if each.failed is None}

    @property
    def reasons(self) -> Mapping[int, str]:
        """Return by worker id why it was left out, of those that came furthest."""
        return {
            each.worker.id: PIPELINE[each.failed].test(each.worker, self.request) or ""
            for each in self.named
            if each.failed is not None
        }

    @property
    def rooms(self) -> Mapping[int, Room]:
        """Return the workers of both with what was held there."""
        return {each.worker.id: each.room() for each in self.named}


def place(snapshot: Snapshot, request: Request, packing: Packing = Packing.WHOLE) -> Placed | Refused:
    """Return the best place for ``request``, or why there is none.

    Deterministic. Workers to avoid come last; of GPUs chosen by hand those come first that no other instance of the
    model has; GPUs come before the CPU; then counts the order of the ways, then the model's strategy, then the
    smaller worker id.
    """
    workers = [room.worker for room in snapshot.rooms.values()]
    verdicts = sift(workers, request, PIPELINE)
    rooms = [snapshot.rooms[worker.id] for worker in verdicts.passed]
    wanted = [room for room in rooms if room.worker.id not in request.avoid]
    apart = _apart(rooms, request)
    for some in (wanted, rooms) if len(wanted) < len(rooms) else (rooms,):
        for each in (apart, request) if apart is not None else (request,):
            if found := _best(some, each, scorer_of(request, packing)):
                return found
    named = {each.id for each in workers if request.gpus is not None and each.name in request.gpus}
    return refusal(snapshot.rooms.__getitem__, request, verdicts, named)


def _apart(rooms: Iterable[Room], request: Request) -> Request | None:
    """Return the request without the GPUs that other instances of the model have; None when that is all the same."""
    if request.gpus is None:
        return None
    left = dict(request.gpus)
    for room in rooms:
        for each in room.holdings:
            if each.model_id == request.model_id and each.instance_id != request.instance_id:
                left[room.worker.name] = left[room.worker.name].difference(each.vram)
    return replace(request, gpus=left) if left != request.gpus else None


def scorer_of(request: Request, packing: Packing) -> Scorer:
    if packing is Packing.BEST_FIT and request.strategy is PlacementStrategy.BINPACK:
        return best_fit
    return SCORERS[request.strategy]


def _best(rooms: Sequence[Room], request: Request, scorer: Scorer) -> Placed | None:
    offered: dict[tuple[int, int], dict[Way, list[Room]]] = {}
    for room in rooms:
        for index, way in _ways(room, request):
            offered.setdefault(way.rank(index), {}).setdefault(way, []).append(room)
    for tier in sorted(offered):
        answers = []
        for way, there in offered[tier].items():
            members = [
                members_of((each for each in there if is_at(each.worker, at)), claim, way, request, scorer)
                for claim, at in way.positions
            ]
            if chosen := assign(way.positions, members):
                cost = sum(each.cost for each in chosen)
                answers.append((cost, tuple(each.worker_id for each in chosen), way, chosen))
        if answers:
            _, _, way, chosen = min(answers, key=lambda each: each[:2])
            return placed(request, way, [(each.worker_id, each.fit) for each in chosen])
    return None


def _ways(room: Room, request: Request) -> Iterator[tuple[int, Way]]:
    for index, way in enumerate(request.offer(room.worker).ways):
        if way.backend in room.worker.backends:
            yield index, way


def _only(worker: Worker, request: Request) -> frozenset[int] | None:
    return None if request.gpus is None else request.gpus.get(worker.name, frozenset())


def members_of(
    rooms: Iterable[Room], claim: ResourceClaim, way: Way, request: Request, scorer: Scorer
) -> list[Member[Fit]]:
    """Return where one member could go, the best set of GPUs of each worker."""
    found = []
    for room in rooms:
        worker, best = room.worker, None
        local = worker.id in request.local
        for met in fits(room, claim, request.strategy, linked=way.linked, only=_only(worker, request)):
            cost = scorer(Candidate(room=room, claim=as_met(claim, met), fit=met, local=local), request)
            if best is None or cost < best.cost:
                best = Member(cost=cost, worker_id=worker.id, fabric=worker.fabric, fit=met)
        if best is not None:
            found.append(best)
    return found


def placed(request: Request, way: Way, members: Sequence[tuple[int, Fit]]) -> Placed:
    """Return the placement of ``request`` with its members at the given workers, the leader first."""
    worker_id, fit = members[0]
    return Placed(
        instance_id=request.instance_id,
        model_id=request.model_id,
        worker_id=worker_id,
        way=way,
        ram=fit.ram,
        vram=fit.vram,
        pieces=fit.pieces,
        followers=tuple(Share(worker_id=each, ram=fit.ram, vram=fit.vram) for each, fit in members[1:]),
        priority=request.priority,
    )


def refusal(
    room_of: Callable[[int], Room], request: Request, verdicts: Verdicts, chosen: Collection[int] = ()
) -> Refused:
    """Return why ``request``, which fits nowhere, was refused.

    ``chosen`` are the workers with GPUs that were chosen by hand: of others there is nothing to say then.
    """
    rooms = [room_of(worker.id) for worker in verdicts.passed]
    near = sorted(rooms, key=lambda room: (miss(room, request).distance, room.worker.id))[:MOST_NAMED]
    order = {step.name: number for number, step in enumerate(verdicts.steps)}
    failed = {key: order[name] for key, name in verdicts.failed_at.items()}
    out = sorted(failed, key=lambda key: (-failed[key], key))
    if request.gpus is not None:
        out = [key for key in out if key in chosen] or (out if not near else [])
    others = {key: room_of(key) for key in out[: MOST_NAMED - len(near)]}
    return Refused(
        request=request,
        workers=len(verdicts.passed) + len(failed),
        steps=verdicts.steps,
        short=len(rooms),
        too_large=bool(rooms) and not _any_possible(rooms, request),
        named=(
            *(Named(room.worker, room.holdings) for room in near),
            *(Named(room.worker, room.holdings, failed[key]) for key, room in others.items()),
        ),
    )


def has_room(room: Room, request: Request) -> bool:
    """Tell whether some way fits in ``room``, or of an instance on several workers one of its members."""
    only = _only(room.worker, request)
    return any(
        True
        for _, way in _ways(room, request)
        for claim in dict.fromkeys(way.members)
        for _ in fits(room, claim, request.strategy, linked=way.linked, only=only)
    )


def miss(room: Room, request: Request) -> Deficit:
    """Return what the nearest way lacks in ``room``; nothing, when only further workers are lacking."""
    return min(_misses(room, request), key=lambda each: each.distance)


def _misses(room: Room, request: Request) -> Iterator[Deficit]:
    only = _only(room.worker, request)
    for _, way in _ways(room, request):
        for claim in dict.fromkeys(way.members):
            if any(True for _ in fits(room, claim, request.strategy, linked=way.linked, only=only)):
                yield Deficit(claim=claim, members=len(way.members))
            else:
                found = deficit(room, claim, linked=way.linked, only=only)
                yield found if not way.followers else _of_many(found, len(way.members))


def _of_many(found: Deficit, members: int) -> Deficit:
    return replace(found, members=members)


def _any_possible(rooms: Iterable[Room], request: Request) -> bool:
    large: dict[tuple[int, Way, str], int] = {}
    for room in rooms:
        for index, way in _ways(room, request):
            only = _only(room.worker, request)
            if any(possible(room, claim, linked=way.linked, only=only) for claim in way.members):
                key = (index, way, room.worker.fabric)
                large[key] = large.get(key, 0) + 1
                if large[key] == len(way.members):
                    return True
    return False
