"""Past decisions made again from their records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.records.codec import BadRecord
from gpustack.scheduling.records.entry import Answer, Entry, verdict


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded decision and the answer that it gets now."""

    entry: Entry
    answer: Answer

    @property
    def same(self) -> bool:
        """Tell whether it was decided as before."""
        return bool(verdict(self.answer) == self.entry.verdict)


class Replay:
    """The fleet of a record, brought forward entry by entry."""

    def __init__(self) -> None:
        self._fleet: Fleet | None = None

    @property
    def fleet(self) -> Fleet:
        """Return the fleet as it was at the last entry. Raises BadRecord before the first."""
        if self._fleet is None:
            raise BadRecord("the record has no decision in it")
        return self._fleet

    def step(self, entry: Entry) -> Fleet:
        """Bring the fleet to where it was when ``entry`` was decided, and return it.

        Raises BadRecord for a first entry that does not tell of the whole fleet.
        """
        if entry.whole:
            self._fleet = Fleet(packing=entry.packing)
        if self._fleet is None:
            raise BadRecord(
                "the record begins in the middle: its first decision does not tell of the whole fleet"
            )
        fleet = self._fleet
        for worker_id in entry.gone:
            fleet.remove_worker(worker_id)
        for worker in entry.workers:
            fleet.put_worker(worker)
        for instance_id in entry.held:
            fleet.release(instance_id)
        for holdings in entry.held.values():
            for holding in holdings:
                fleet.hold(holding)
        return fleet


def replay(entries: Iterable[Entry]) -> Iterator[Replayed]:
    """Yield each decision with the answer it gets now. Raises BadRecord when the record begins in the middle."""
    state = Replay()
    for entry in entries:
        fleet = state.step(entry)
        yield Replayed(entry, again(fleet, entry))


def again(fleet: Fleet, entry: Entry) -> Answer:
    """Return what ``fleet``, as it was at ``entry``, answers to its question now."""
    return fleet.preempt(entry.request) if entry.preempts else fleet.place(entry.request)
