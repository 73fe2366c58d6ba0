"""A fleet that keeps a record of each decision it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.plan import Packing, Placed, Refused
from gpustack.scheduling.preempt import Preemption
from gpustack.scheduling.records.entry import Answer, Entry, verdict
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Holding, Worker

#: Entries that wait to be taken. More means that nobody takes them: then they are dropped, and the record begins anew.
MOST_WAITING = 20_000
#: An entry with the whole fleet comes after so many, and more seldom where the fleet is large: for each thing that it
#: has to tell of there are two entries.
_WHOLE_AFTER = 1000
_PER_THING = 2


@dataclass(slots=True)
class Taken:
    """A decision as it was made; made into an :class:`Entry` when it is taken, which is later and elsewhere."""

    at: float
    request: Request
    answer: Answer
    workers: tuple[Worker, ...]
    gone: tuple[int, ...]
    held: dict[int, tuple[Holding, ...]]
    whole: bool


class RecordedFleet(Fleet):
    """As a fleet, but what :meth:`decide` answers can be replayed from what :meth:`take` returns.

    A decision that was made in a trial is recorded with the fleet as the trial had it. What only :meth:`place` answers,
    such as whether the end of another instance would help, is no decision.
    """

    def __init__(
        self,
        workers: Iterable[Worker] = (),
        holdings: Iterable[Holding] = (),
        *,
        packing: Packing = Packing.WHOLE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._kept_workers: dict[int, Worker] = {}
        self._kept_held: dict[int, tuple[Holding, ...]] = {}
        self._touched_workers: dict[int, None] = {}
        self._touched_instances: dict[int, None] = {}
        self._taken: list[Taken] = []
        self._since_whole = 0
        self._begin_anew = True
        self._policy = packing
        #: Decisions that nobody took in time.
        self.lost = 0
        #: Called after each decision; must not fail, and not take long.
        self.on_decision: Callable[[], None] = lambda: None
        super().__init__(workers, holdings, packing=packing)

    def put_worker(self, worker: Worker) -> None:
        """Take in a new or changed worker; what is held there stays."""
        self._touched_workers[worker.id] = None
        super().put_worker(worker)

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker; what is held there counts again when it comes back."""
        self._touched_workers[worker_id] = None
        super().remove_worker(worker_id)

    def hold(self, holding: Holding) -> None:
        """Claim ``holding``, in place of what the instance held on that worker."""
        self._touched_instances[holding.instance_id] = None
        super().hold(holding)

    def release(self, instance_id: int) -> None:
        """Free all that the instance holds; nothing when it holds nothing."""
        self._touched_instances[instance_id] = None
        super().release(instance_id)

    def decide(self, request: Request) -> Placed | Refused:
        """Return what :meth:`place` does, and record it."""
        answer = self.place(request)
        self.record(request, answer)
        return answer

    def preempt(self, request: Request) -> Preemption | None:
        """Return who is to leave for ``request``, which fits nowhere, and record it when somebody is."""
        answer = super().preempt(request)
        if answer is not None:
            self.record(request, answer)
        return answer

    def record(self, request: Request, answer: Answer) -> None:
        """Record an answer of this fleet as it is now. Microseconds; nothing is encoded here."""
        if len(self._taken) >= MOST_WAITING:
            self.lost += len(self._taken)
            self._taken.clear()
            self._begin_anew = True
        self._since_whole += 1
        things = len(self._kept_workers) + len(self._kept_held)
        workers, gone, held = self._changes()
        whole = self._begin_anew or self._since_whole > max(_WHOLE_AFTER, _PER_THING * things)
        if whole:
            self._begin_anew, self._since_whole = False, 0
            workers, gone, held = tuple(self._kept_workers.values()), (), dict(self._kept_held)
        self._taken.append(Taken(self._clock(), request, answer, workers, gone, held, whole))
        self.on_decision()

    def _changes(self) -> tuple[tuple[Worker, ...], tuple[int, ...], dict[int, tuple[Holding, ...]]]:
        """Return what is other than at the decision before. What a trial has undone is not."""
        workers: list[Worker] = []
        gone: list[int] = []
        held: dict[int, tuple[Holding, ...]] = {}
        for number in self._touched_workers:
            new, old = self.worker(number), self._kept_workers.get(number)
            if new is None:
                if old is not None:
                    del self._kept_workers[number]
                    gone.append(number)
            elif new is not old and new != old:
                self._kept_workers[number] = new
                workers.append(new)
        for number in self._touched_instances:
            holdings = self.holdings(number)
            if holdings == self._kept_held.get(number, ()):
                continue
            held[number] = holdings
            if holdings:
                self._kept_held[number] = holdings
            else:
                del self._kept_held[number]
        self._touched_workers.clear()
        self._touched_instances.clear()
        return tuple(workers), tuple(gone), held

    @property
    def waiting(self) -> int:
        """Return how many decisions wait to be taken."""
        return len(self._taken)

    def take(self, most: int) -> list[Taken]:
        """Return and forget the oldest decisions, at most ``most``; :func:`entries` makes entries of them."""
        taken, self._taken = self._taken[:most], self._taken[most:]
        return taken

    def gap(self) -> None:
        """Begin the record anew: what was taken last has been lost."""
        self._begin_anew = True


def entries(taken: Iterable[Taken], packing: Packing = Packing.WHOLE) -> list[Entry]:
    """Return the entries of what was taken. May run in another thread than the fleet."""
    return [
        Entry(
            at=each.at,
            request=each.request,
            verdict=verdict(each.answer),
            workers=each.workers,
            gone=each.gone,
            held=each.held,
            whole=each.whole,
            packing=packing,
        )
        for each in taken
    ]
