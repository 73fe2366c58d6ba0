"""The simulation itself: time goes from one thing that happens to the next, and the real scheduler decides."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count

from gpustack.scheduling.explain import explain
from gpustack.scheduling.fleet import Fleet, Watch
from gpustack.scheduling.plan import Packing, Placed, Refused
from gpustack.scheduling.records.entry import Answer, verdict
from gpustack.scheduling.request import Request
from gpustack.scheduling.simulation.described import Kind, Workload
from gpustack.scheduling.simulation.report import OfKind, Report, Waits
from gpustack.scheduling.simulation.script import Arrival, Outage, arrivals, outages
from gpustack.scheduling.simulation.usage import Meter
from gpustack.scheduling.snapshot import Holding, Worker
from gpustack.schemas.models import PlacementStrategy

#: The order of what happens in one moment: room comes free before anybody asks for it.
_END, _RETURN, _FAIL, _ARRIVE = range(4)


#: Above all priorities.
_FIXED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the scheduler chooses among the places that fit."""

    name: str
    packing: Packing = Packing.WHOLE
    #: In place of what the requests ask for.
    strategy: PlacementStrategy | None = None


POLICIES = {
    each.name: each
    for each in (
        Policy(name="whole"),
        Policy(name="best-fit", packing=Packing.BEST_FIT),
        Policy(name="spread", strategy=PlacementStrategy.SPREAD),
        Policy(name="binpack", strategy=PlacementStrategy.BINPACK),
    )
}


@dataclass(slots=True)
class _Instance:
    """One request on its way."""

    number: int
    kind: Kind
    request: Request
    #: Seconds that it has left to run; None for ever.
    left: float | None
    #: Seconds that it has waited before.
    waited: float = 0.0
    #: Since when it waits; None while it is placed.
    asks: float | None = None
    #: When it was placed last; None while it waits.
    since: float | None = None
    watch: Watch | None = None
    #: Counts its placements, so that the end of an earlier one is none of a later one.
    turn: int = 0
    workers: tuple[int, ...] = ()

    def wait_until(self, now: float) -> float:
        """Return the seconds that it has waited in all."""
        return self.waited if self.asks is None else self.waited + now - self.asks


@dataclass(slots=True)
class _Counts:
    arrived: int = 0
    placed: int = 0
    at_once: int = 0
    #: Of those that have ended.
    waits: list[float] = field(default_factory=list)


def simulate(
    workers: Sequence[Worker],
    workload: Workload,
    policy: Policy,
    *,
    seed: int | None = None,
    holdings: Iterable[Holding] = (),
) -> Report:
    """Return what comes of ``workload`` on ``workers``; ``holdings`` are there for all of the time.

    ``seed`` stands in for the workload's own. Raises InvalidInput for failures of workers that are not there.
    """
    seed = workload.seed if seed is None else seed
    held = list(holdings)
    run = _Run(workers, workload, policy, held)
    run.go(arrivals(workload, seed), outages(workload, workers, seed))
    return run.report(seed)


class _Run:
    def __init__(
        self, workers: Sequence[Worker], workload: Workload, policy: Policy, holdings: Sequence[Holding]
    ) -> None:
        self._workers = workers
        self._original = {each.id: each for each in workers}
        self._workload = workload
        self._policy = policy
        # What is not the workload's own stays.
        fixed = [replace(each, priority=_FIXED) for each in holdings]
        self._fleet = Fleet(workers, fixed, packing=policy.packing)
        self._kinds = frozenset(each.kind for each in workers)
        self._backends = frozenset().union(*(each.backends for each in workers))
        self._cluster = workers[0].cluster_id
        self._ids = count(1 + max((each.instance_id for each in holdings), default=0))
        self._order = count()
        self._events: list[tuple[float, int, int, object]] = []
        self._placed: dict[int, _Instance] = {}
        self._waiting: dict[int, _Instance] = {}
        #: How many failures have a worker at this moment.
        self._down: dict[int, int] = {}
        self._counts = {each.name: _Counts() for each in workload.kinds}
        self._lost = self._preempted = self._decisions = 0
        self._digest = sha256()
        self._meter: Meter

    def go(self, arriving: Sequence[Arrival], failing: Sequence[Outage]) -> None:
        """Let everything happen."""
        weights: dict[str, float] = {}
        for each in arriving:
            weights[each.kind.name] = weights.get(each.kind.name, 0.0) + 1
            self._push(each.at, _ARRIVE, each)
        for outage in failing:
            self._push(outage.at, _FAIL, outage)
            self._push(outage.at + outage.lasts, _RETURN, outage.worker_id)
        self._meter = Meter(
            self._fleet, [(kind, weights.get(kind.name, 0.0)) for kind in self._workload.kinds]
        )
        while self._events and self._events[0][0] <= self._workload.duration:
            now, what, _, thing = heapq.heappop(self._events)
            self._meter.pass_to(now)
            self._happen(now, what, thing)
        self._meter.pass_to(self._workload.duration)

    def _push(self, at: float, what: int, thing: object) -> None:
        heapq.heappush(self._events, (at, what, next(self._order), thing))

    def _happen(self, now: float, what: int, thing: object) -> None:
        if what == _ARRIVE:
            assert isinstance(thing, Arrival)
            self._arrive(now, thing)
            return
        if what == _END:
            assert isinstance(thing, tuple)
            if not self._end(*thing):
                return
        elif what == _FAIL:
            assert isinstance(thing, Outage)
            self._fail(now, thing.worker_id)
        else:
            assert isinstance(thing, int)
            self._return(thing)
        self._retry(now)

    def _arrive(self, now: float, arrival: Arrival) -> None:
        number = next(self._ids)
        request = self._request_of(arrival.kind, number)
        instance = _Instance(number, arrival.kind, request, arrival.lasts, asks=now)
        self._counts[arrival.kind.name].arrived += 1
        if not self._try(now, instance):
            self._waiting[number] = instance

    def _request_of(self, kind: Kind, number: int) -> Request:
        request = kind.request(number, self._kinds, self._backends)
        request = replace(request, cluster_id=self._cluster)
        return request if self._policy.strategy is None else replace(request, strategy=self._policy.strategy)

    def _try(self, now: float, instance: _Instance) -> bool:
        if instance.watch is not None and not self._fleet.stirred(instance.watch):
            return False
        answer = self._decide(now, instance.request)
        if not isinstance(answer, Placed):
            instance.watch = self._fleet.watch(instance.request)
            return False
        for each in answer.holdings():
            self._fleet.hold(each)
        instance.workers = tuple(each.worker_id for each in answer.holdings())
        self._meter.touch(instance.workers)
        instance.waited = instance.wait_until(now)
        instance.since, instance.watch, instance.asks = now, None, None
        instance.turn += 1
        self._placed[instance.number] = instance
        if instance.turn == 1:
            counts = self._counts[instance.kind.name]
            counts.placed += 1
            counts.at_once += not instance.waited
        if instance.left is not None:
            self._push(now + instance.left, _END, (instance.number, instance.turn))
        return True

    def _decide(self, now: float, request: Request) -> Placed | Refused:
        """Place the request, in the place of others if it must be and may."""
        answer = self._fleet.place(request)
        self._note(answer)
        if isinstance(answer, Placed) or not request.priority:
            return answer
        preemption = self._fleet.preempt(request)
        self._note(preemption)
        if preemption is None:
            return answer
        self._preempted += len(preemption.victims)
        for number in preemption.victims:
            self._take_from(now, self._placed[number])
            self._waiting[number] = self._placed.pop(number)
        return preemption.placed

    def _note(self, answer: Answer) -> None:
        self._decisions += 1
        self._digest.update(json.dumps(verdict(answer), sort_keys=True).encode())

    def _take_from(self, now: float, instance: _Instance) -> None:
        """Free what an instance holds that runs; it has the rest of its time left."""
        self._fleet.release(instance.number)
        self._meter.touch(instance.workers)
        if instance.left is not None and instance.since is not None:
            instance.left = max(0.0, instance.left - (now - instance.since))
        instance.since, instance.asks, instance.workers = None, now, ()

    def _retry(self, now: float) -> None:
        # When one of a kind is refused, so are all that ask for the same: room only becomes less meanwhile.
        refused: set[str] = set()
        first = sorted(self._waiting.items(), key=lambda each: -each[1].kind.priority)
        for number, instance in first:
            if instance.kind.name in refused:
                continue
            if self._try(now, instance):
                del self._waiting[number]
            else:
                refused.add(instance.kind.name)

    def _end(self, number: int, turn: int) -> bool:
        """End an instance; False when a failure had taken its place before."""
        instance = self._placed.get(number)
        if instance is None or instance.turn != turn:
            return False
        del self._placed[number]
        self._counts[instance.kind.name].waits.append(instance.waited)
        self._fleet.release(number)
        self._meter.touch(instance.workers)
        return True

    def _fail(self, now: float, worker_id: int) -> None:
        self._down[worker_id] = self._down.get(worker_id, 0) + 1
        self._put(replace(self._original[worker_id], ready=False, state_message="failed"))
        hit = [each for each in self._placed.values() if worker_id in each.workers]
        for instance in hit:
            del self._placed[instance.number]
            self._take_from(now, instance)
            self._lost += 1
        # Who was there before comes before those that wait.
        self._waiting = {each.number: each for each in hit} | self._waiting

    def _return(self, worker_id: int) -> None:
        self._down[worker_id] -= 1
        if not self._down[worker_id]:
            self._put(self._original[worker_id])

    def _put(self, worker: Worker) -> None:
        self._fleet.put_worker(worker)
        self._meter.touch([worker.id])

    def _impossible(self, name: str) -> str:
        """Return why requests of a kind fit nowhere in the empty fleet, in a line; empty when they do."""
        kind = next(each for each in self._workload.kinds if each.name == name)
        empty = Fleet(self._original.values())
        answer = empty.place(self._request_of(kind, 0))
        return ": ".join(explain(answer)[:2]) if isinstance(answer, Refused) else ""

    def report(self, seed: int) -> Report:
        """Return what came of it."""
        counts = self._counts
        by_kind = {name: list(each.waits) for name, each in counts.items()}
        for one in (*self._placed.values(), *self._waiting.values()):
            by_kind[one.kind.name].append(one.wait_until(self._workload.duration))
        waits = [wait for each in by_kind.values() for wait in each]
        return Report(
            policy=self._policy.name,
            seed=seed,
            duration=self._workload.duration,
            workers=len(self._workers),
            gpus=sum(len(each.gpus) for each in self._workers),
            arrived=sum(each.arrived for each in counts.values()),
            placed=sum(each.placed for each in counts.values()),
            at_once=sum(each.at_once for each in counts.values()),
            waiting=len(self._waiting),
            waiting_again=sum(each.turn > 0 for each in self._waiting.values()),
            lost=self._lost,
            preempted=self._preempted,
            waits=Waits.of(waits),
            utilisation=self._meter.utilisation,
            fragmentation=self._meter.fragmentation,
            decisions=self._decisions,
            fingerprint=self._digest.hexdigest()[:16],
            kinds={
                name: OfKind(
                    arrived=each.arrived,
                    placed=each.placed,
                    at_once=each.at_once,
                    waits=Waits.of(by_kind[name]),
                    impossible="" if each.placed else self._impossible(name),
                )
                for name, each in counts.items()
            },
        )
