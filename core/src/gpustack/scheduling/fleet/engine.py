"""The fleet: workers and holdings that change in place, and decisions on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from gpustack.kit.text import MIB
from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling import plan
from gpustack.scheduling.filters import CANDIDATES, PIPELINE, sift
from gpustack.scheduling.fit import Fit, per_gpu
from gpustack.scheduling.fleet import kernels
from gpustack.scheduling.fleet.audience import Tier, tiers
from gpustack.scheduling.fleet.columns import I32, I64, Columns, Index
from gpustack.scheduling.fleet.eligible import Directory, Eligible
from gpustack.scheduling.fleet.kernels import Extra, Need
from gpustack.scheduling.fleet.refusal import refusal
from gpustack.scheduling.fleet.seat import Seat, in_order
from gpustack.scheduling.gang import Member, assign
from gpustack.scheduling.plan import Packing, Placed, Refused, place, placed
from gpustack.scheduling.preempt import Preemption, preempt
from gpustack.scheduling.request import Request, Way
from gpustack.scheduling.scorers.spread import AWAY_SHIFT, MOST_SAME, SAME_SHIFT
from gpustack.scheduling.snapshot import Holding, Room, Snapshot, Worker, mib_needed
from gpustack.schemas.models import PlacementStrategy

_NOTHING = Extra(None, None)


@dataclass(frozen=True, slots=True)
class Watch:
    """Where a refused request could go, and the moment of its refusal."""

    cluster_id: int
    selector: tuple[tuple[str, str], ...]
    since: int


class Fleet:
    """Workers with what is held there. Not for several threads at once."""

    def __init__(
        self,
        workers: Iterable[Worker] = (),
        holdings: Iterable[Holding] = (),
        *,
        packing: Packing = Packing.WHOLE,
    ) -> None:
        self._packing = packing
        self._seats: dict[int, Seat] = {}
        #: What each instance holds, also on workers that are not known (yet).
        self._held: dict[int, dict[int, Holding]] = {}
        self._strays: dict[int, dict[int, Holding]] = {}
        #: Slots with instances of a model, and how many.
        self._models: dict[int, dict[int, int]] = {}
        #: None while workers have come or changed their shape.
        self._built: tuple[Columns, Directory] | None = None
        #: Counts changes.
        self.clock = 0
        #: In a trial: what instances held before it, and when room last came free on the workers that it touched.
        self._before: dict[int, dict[int, Holding]] | None = None
        self._rose: dict[int, int] = {}
        for worker in workers:
            self.put_worker(worker)
        for holding in holdings:
            self.hold(holding)

    # Changes ---------------------------------------------------------------------------------------------

    def put_worker(self, worker: Worker) -> None:
        """Take in a new or changed worker; what is held there stays."""
        assert self._before is None, "workers do not change in a trial"
        self.clock += 1
        seat = self._seats.get(worker.id)
        if seat is None:
            seat = self._seats[worker.id] = Seat(worker, self._strays.pop(worker.id, {}).values())
            seat.rose = seat.altered = self.clock
            for holding in seat.holdings.values():
                self._count(holding, 1)
            self._built = None
            return
        old = seat.worker
        if worker == old:
            return
        shape, free, ram = seat.shape, seat.free, seat.ram
        seat.set_worker(worker, list(seat.holdings.values()))
        if len(free) != len(seat.free) or ram < seat.ram or any(map(int.__lt__, free, seat.free)):
            seat.rose = self.clock
        if _traits(old) != _traits(worker):
            seat.altered = self.clock
        if seat.shape != shape:
            self._built = None
        elif self._built is not None:
            columns, directory = self._built
            columns.refresh(seat)
            columns.resize(seat)
            columns.rose[seat.slot], columns.altered[seat.slot] = seat.rose, seat.altered
            if seat.altered == self.clock:
                directory.put(seat, old)

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker; what is held there counts again when it comes back."""
        seat = self._seats.pop(worker_id, None)
        if seat is None:
            return
        assert self._before is None, "workers do not change in a trial"
        self.clock += 1
        if seat.holdings:
            self._strays[worker_id] = seat.holdings
            for holding in seat.holdings.values():
                self._count(holding, -1)
        if self._built is not None:
            self._built[1].drop(seat)

    def hold(self, holding: Holding) -> None:
        """Claim ``holding``, in place of what the instance held on that worker."""
        worker_id, instance_id = holding.worker_id, holding.instance_id
        mine = self._held.setdefault(instance_id, {})
        old = mine.get(worker_id)
        if holding == old:
            return
        self.clock += 1
        self._note(instance_id)
        seat = self._seats.get(worker_id)
        rose = 0 if seat is None else seat.rose
        if old is not None:
            self._drop(old)
        mine[worker_id] = holding
        if seat is None:
            self._strays.setdefault(worker_id, {})[instance_id] = holding
            return
        if self._before is not None:
            self._rose.setdefault(worker_id, seat.rose)
        if old is not None and _frees_nothing(old, holding):
            self._rise(seat, rose)
        seat.put(holding)
        self._count(holding, 1)
        if self._built is not None:
            self._built[0].refresh(seat)

    def release(self, instance_id: int) -> None:
        """Free all that the instance holds; nothing when it holds nothing."""
        if instance_id not in self._held:
            return
        self.clock += 1
        self._note(instance_id)
        for holding in self._held.pop(instance_id).values():
            self._drop(holding)

    def touch(self, worker_id: int) -> None:
        """Say that room may have come free on a worker, as when a decision for it came to nothing."""
        if (seat := self._seats.get(worker_id)) is not None:
            self.clock += 1
            self._rise(seat, self.clock)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Undo at the end what is held and released within; no refused request is stirred by that."""
        outer, self._before = self._before, {}
        outer_rose, self._rose = self._rose, {}
        try:
            yield
        finally:
            before, self._before = self._before, None
            rose, self._rose = self._rose, {}
            for instance_id, holdings in before.items():
                self.release(instance_id)
                for holding in holdings.values():
                    self.hold(holding)
            for worker_id, moment in rose.items():
                self._rise(self._seats[worker_id], moment)
            self._before, self._rose = outer, outer_rose

    def _note(self, instance_id: int) -> None:
        if self._before is not None and instance_id not in self._before:
            self._before[instance_id] = dict(self._held.get(instance_id, {}))

    def _rise(self, seat: Seat, moment: int) -> None:
        if self._before is not None:
            self._rose.setdefault(seat.worker.id, seat.rose)
        seat.rose = moment
        if self._built is not None:
            self._built[0].rose[seat.slot] = moment

    def held_on(self, worker_id: int) -> tuple[Holding, ...]:
        """Return what instances hold on a worker, known or not, by instance."""
        seat = self._seats.get(worker_id)
        return in_order(self._strays.get(worker_id, {}) if seat is None else seat.holdings)

    def holdings(self, instance_id: int) -> tuple[Holding, ...]:
        """Return what the instance holds."""
        return tuple(self._held.get(instance_id, {}).values())

    def _drop(self, holding: Holding) -> None:
        seat = self._seats.get(holding.worker_id)
        if seat is None:
            self._strays.get(holding.worker_id, {}).pop(holding.instance_id, None)
            return
        seat.pop(holding.instance_id)
        self._count(holding, -1)
        self._rise(seat, self.clock)
        if self._built is not None:
            self._built[0].refresh(seat)

    def _count(self, holding: Holding, change: int) -> None:
        counts = self._models.setdefault(holding.model_id, {})
        left = counts.get(holding.worker_id, 0) + change
        if left:
            counts[holding.worker_id] = left
        else:
            del counts[holding.worker_id]
            if not counts:
                del self._models[holding.model_id]

    # Views -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._seats)

    def worker(self, worker_id: int) -> Worker | None:
        """Return a worker as it was put, None when it is not known."""
        seat = self._seats.get(worker_id)
        return None if seat is None else seat.worker

    def room(self, worker_id: int) -> Room:
        """Return one worker with what is held there. Raises KeyError when it is not known."""
        return self._seats[worker_id].room()

    def snapshot(self, worker_ids: Iterable[int] | None = None) -> Snapshot:
        """Return all workers, or those named, as they are now."""
        ids = sorted(self._seats if worker_ids is None else set(worker_ids) & self._seats.keys())
        return Snapshot({each: self._seats[each].room() for each in ids})

    def workers(self) -> Iterator[Worker]:
        """Yield all workers by id."""
        for each in sorted(self._seats):
            yield self._seats[each].worker

    def candidates(self, request: Request) -> list[int]:
        """Return the ids of the workers that could be asked to serve the model, by id: they are ready and selected."""
        columns, directory = self._columns()
        if request.gpus is not None:
            return [each.id for each in sift(self._named(request.gpus), request, CANDIDATES).passed]
        seats = columns.seats
        selector = tuple(sorted(request.selector.items()))
        flags = directory.candidates(request.cluster_id, selector).flags & directory.ready
        return [seats[slot].worker.id for slot in np.flatnonzero(flags)]

    # Decisions -------------------------------------------------------------------------------------------

    def place(self, request: Request) -> Placed | Refused:
        """Return the best place for ``request``, or why there is none. Nothing is claimed by this."""
        if request.gpus is not None:
            return self._by_hand(request)
        columns, directory = self._columns()
        found = tiers(columns, directory, request)
        extra = self._extra(columns, request)
        if request.avoid:
            good = np.ones(len(columns.ram), np.bool_)
            good[self._slots(request.avoid)] = False
            few = [[(way, eligible.where(good)) for way, eligible in tier] for tier in found]
            answer = self._first(columns, request, few, extra)
            if answer is not None:
                return answer
        answer = self._first(columns, request, found, extra)
        return answer if answer is not None else self.refuse(request)

    def refuse(self, request: Request) -> Refused:
        """Return why ``request``, which fits nowhere, does not."""
        if request.gpus is not None:
            named = {each.id for each in self._named(request.gpus)}
            return plan.refusal(self.room, request, sift(self.workers(), request, PIPELINE), named)
        columns, directory = self._columns()
        return refusal(columns, directory, request, len(self._seats))

    def preempt(self, request: Request) -> Preemption | None:
        """Return who is to leave for ``request``, which fits nowhere; see :func:`gpustack.scheduling.preempt`."""
        crowded = {
            worker_id
            for mine in self._held.values()
            for worker_id, each in mine.items()
            if each.priority < request.priority
        }
        if not crowded:
            return None
        alone = crowded if not _has_gangs(request) else None
        return preempt(self.snapshot(alone), request, self._packing)

    def watch(self, request: Request) -> Watch:
        """Return what tells later whether a request that was refused now may fit."""
        return Watch(request.cluster_id, tuple(sorted(request.selector.items())), self.clock)

    def stirred(self, watch: Watch) -> bool:
        """Tell whether room has come free, or a worker has changed, where the request could go."""
        if watch.since == self.clock:
            return False
        columns, directory = self._columns()
        some = directory.candidates(watch.cluster_id, watch.selector).slots
        if not len(some):
            return False
        newest = max(int(columns.rose.take(some).max()), int(columns.altered.take(some).max()))
        return newest > watch.since

    def _columns(self) -> tuple[Columns, Directory]:
        if self._built is None:
            seats = [self._seats[each] for each in sorted(self._seats)]
            columns = Columns(seats, best_fit=self._packing is Packing.BEST_FIT)
            self._built = columns, Directory(columns, seats)
        return self._built

    def _by_hand(self, request: Request) -> Placed | Refused:
        """Few workers are named, so that looking at each is fast."""
        assert request.gpus is not None
        named = [each.id for each in self._named(request.gpus)]
        answer = place(self.snapshot(named), request, self._packing)
        return answer if isinstance(answer, Placed) else self.refuse(request)

    def _named(self, gpus: Mapping[str, frozenset[int]]) -> Iterator[Worker]:
        return (each for each in self.workers() if each.name in gpus)

    def _slots(self, worker_ids: Iterable[int]) -> list[int]:
        seats = self._seats
        return sorted(seats[each].slot for each in worker_ids if each in seats)

    def _extra(self, columns: Columns, request: Request) -> Extra:
        local = np.array(self._slots(request.local), np.intp) if request.local else None
        if request.strategy is not PlacementStrategy.SPREAD:
            return Extra(None, local) if local is not None else _NOTHING
        same = self._models.get(request.model_id)
        if same is None and local is None:
            return _NOTHING
        adjust = np.zeros(len(columns.ram), np.int64)
        if same is not None:
            seats = self._seats
            adjust[[seats[each].slot for each in same]] = [
                min(count, MOST_SAME) << SAME_SHIFT for count in same.values()
            ]
        if local is not None:
            adjust[local] -= 1 << AWAY_SHIFT
        return Extra(adjust, local)

    def _first(
        self, columns: Columns, request: Request, found: Sequence[Tier], extra: Extra
    ) -> Placed | None:
        for tier in found:
            best: tuple[tuple[int, tuple[int, ...]], Placed] | None = None
            for way, eligible in tier:
                answer = (
                    self._gang(columns, request, way, eligible, extra)
                    if way.followers
                    else self._single(columns, request, way, eligible, extra)
                )
                if answer is not None and (best is None or answer[0] < best[0]):
                    best = answer
            if best is not None:
                return best[1]
        return None

    def _single(
        self, columns: Columns, request: Request, way: Way, eligible: Eligible, extra: Extra
    ) -> tuple[tuple[int, tuple[int, ...]], Placed] | None:
        if way.claim.pieces:
            return self._pieces(columns, request, way, eligible)
        need = need_of(way, way.claim, request)
        spot = kernels.best(columns, eligible, need, extra)
        if spot is None:
            return None
        seat = columns.seats[spot.slot]
        fit = _fit(seat, way.claim, need)
        worker_id = seat.worker.id
        return (spot.cost, (worker_id,)), placed(request, way, [(worker_id, fit)])

    def _pieces(
        self, columns: Columns, request: Request, way: Way, eligible: Eligible
    ) -> tuple[tuple[int, tuple[int, ...]], Placed] | None:
        """Look at each worker that has enough in all: how much fits there depends on each of its GPUs."""
        claim = way.claim
        slots = eligible.slots
        free = np.maximum(columns.free.take(slots, axis=0).astype(np.int64) * MIB - claim.each, 0)
        enough = (free // claim.piece).sum(axis=1) >= claim.pieces
        enough &= columns.ram.take(slots) >= mib_needed(claim.ram)
        rooms = [columns.seats[slot].room() for slot in slots[enough].tolist()]
        members = plan.members_of(rooms, claim, way, request, plan.scorer_of(request, self._packing))
        if not members:
            return None
        best = min(members, key=lambda each: (each.cost, each.worker_id))
        return (best.cost, (best.worker_id,)), placed(request, way, [(best.worker_id, best.fit)])

    def _gang(
        self, columns: Columns, request: Request, way: Way, eligible: Eligible, extra: Extra
    ) -> tuple[tuple[int, tuple[int, ...]], Placed] | None:
        directory = self._columns()[1]
        costs = {
            (claim, at): kernels.costs(
                columns,
                eligible.where(directory.of_kind(at)) if at else eligible,
                need_of(way, claim, request),
                extra,
            )
            for claim, at in dict.fromkeys(way.positions)
        }
        chosen = (
            _equal_members(columns, *costs[way.positions[0]], len(way.members))
            if len(costs) == 1
            else _members(columns, costs, way)
        )
        if chosen is None:
            return None
        fits = [
            (each.worker_id, _fit(self._seats[each.worker_id], claim, need_of(way, claim, request)))
            for each, claim in zip(chosen, way.members, strict=True)
        ]
        key = sum(each.cost for each in chosen), tuple(each.worker_id for each in chosen)
        return key, placed(request, way, fits)


def _frees_nothing(old: Holding, new: Holding) -> bool:
    """Tell whether ``new`` is no help to anybody who was refused for ``old``."""
    return (old.ram, old.vram) == (new.ram, new.vram) and old.priority <= new.priority


def _has_gangs(request: Request) -> bool:
    return any(
        way.followers for offer in (*request.kinds.values(), *request.offers.values()) for way in offer.ways
    )


def need_of(way: Way, claim: ResourceClaim, request: Request) -> Need:
    """Return a claim of ``way`` in whole MiB."""
    return Need(
        claim.gpus,
        mib_needed(per_gpu(claim)),
        mib_needed(claim.ram),
        way.linked and claim.gpus > 1,
        request.strategy is PlacementStrategy.SPREAD,
    )


def _fit(seat: Seat, claim: ResourceClaim, need: Need) -> Fit:
    if not need.gpus:
        return Fit(ram=claim.ram)
    gpus = seat.choose(need.gpus, need.share, linked=need.linked, fullest=not need.spread)
    return Fit(ram=claim.ram, vram=dict.fromkeys(gpus, per_gpu(claim)))


def _equal_members(columns: Columns, slots: Index, cost: I64, count: int) -> list[Member[None]] | None:
    """Return what :func:`assign` does for members that are all alike: the cheapest of one fabric."""
    if len(slots) < count:
        return None
    order, starts, sizes = _by_fabric(columns.fabric.take(slots), cost)
    starts = starts[sizes >= count]
    if not len(starts):
        return None
    picked = order[starts[:, None] + np.arange(count)]
    sums = cost[picked].sum(axis=1)
    (cheapest,) = np.nonzero(sums == sums.min())
    best = min(sorted(picked[each].tolist()) for each in cheapest)
    return [Member(int(cost[at]), columns.seats[slots[at]].worker.id, "", None) for at in best]


def _members(
    columns: Columns, costs: Mapping[tuple[ResourceClaim, str], tuple[Index, I64]], way: Way
) -> list[Member[None]] | None:
    """Hand the cheapest of each fabric to :func:`assign`."""
    lists: dict[tuple[ResourceClaim, str], list[Member[None]]] = {}
    for position, (slots, cost) in costs.items():
        if not len(slots):
            return None
        order, starts, sizes = _by_fabric(columns.fabric.take(slots), cost)
        ranks = np.arange(len(order)) - np.repeat(starts, sizes)
        workers = ((at, columns.seats[slots[at]].worker) for at in order[ranks < len(way.members)])
        lists[position] = [Member(int(cost[at]), worker.id, worker.fabric, None) for at, worker in workers]
    return assign(way.positions, [lists[each] for each in way.positions])


def _by_fabric(fabric: I32, cost: I64) -> tuple[Index, Index, Index]:
    """Return the order by fabric and cost, and where in it each fabric begins and how many it has."""
    order = _by_fabric_and_cost(fabric, cost)
    starts = np.flatnonzero(np.diff(fabric.take(order), prepend=-1))
    return order, starts, np.diff(starts, append=len(order))


def _by_fabric_and_cost(fabric: I32, cost: I64) -> Index:
    """Return the order by fabric, then cost, then place; sorting packed numbers is many times faster than their places."""
    low, size = int(cost.min()), len(cost)
    places = size.bit_length()
    bits = (int(cost.max()) - low).bit_length()
    if int(fabric.max()).bit_length() + bits + places < 63:
        packed = (fabric.astype(np.int64) << (bits + places)) | ((cost - low) << places) | np.arange(size)
        packed.sort()
        return packed & ((1 << places) - 1)
    order = np.argsort(cost, kind="stable")
    return order[np.argsort(fabric[order], kind="stable")]


def _traits(worker: Worker) -> tuple[object, ...]:
    """Return what filters look at, and the fabric."""
    return (
        worker.name,
        worker.cluster_id,
        worker.ready,
        worker.state_message,
        worker.labels,
        worker.backends,
        worker.kind,
        worker.fabric,
    )
