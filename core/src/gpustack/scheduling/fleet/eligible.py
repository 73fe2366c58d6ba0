"""Which workers a request may go to, without their memory: kept by what is asked, made anew when workers change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from gpustack.scheduling.fleet.columns import Columns, Flags, Index
from gpustack.scheduling.fleet.seat import Seat
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Worker

T = TypeVar("T")

#: Requirements that are kept.
_MOST = 512


class Eligible:
    """Slots that may be taken, and their rows once they are asked for."""

    __slots__ = ("_columns", "_flags", "_rows", "_whole", "slots")

    def __init__(self, columns: Columns, flags: Flags | None = None, *, slots: Index | None = None) -> None:
        if slots is None:
            assert flags is not None
            slots = np.flatnonzero(flags)
        self._columns = columns
        self._flags = flags
        self.slots: Index = slots
        self._rows: dict[tuple[int, bool], Index] = {}
        self._whole: Index | None = None

    @property
    def flags(self) -> Flags:
        """Return by slot whether it may be taken."""
        if self._flags is None:
            self._flags = np.zeros(len(self._columns.ram), np.bool_)
            self._flags[self.slots] = True
        return self._flags

    def rows(self, count: int, *, linked: bool) -> Index:
        """Return the rows with ``count`` GPUs or more, all or those whose GPUs are linked."""
        found = self._rows.get((count, linked))
        if found is None:
            columns = self._columns
            good = self.flags.take(columns.row_slot) & (columns.row_gpus >= count)
            found = np.flatnonzero(good & columns.row_linked if linked else good)
            self._rows[count, linked] = found
        return found

    def whole(self) -> Index:
        """Return the row of all GPUs of each slot."""
        if self._whole is None:
            self._whole = self._columns.last_row.take(self.slots)
        return self._whole

    def where(self, flags: Flags) -> Eligible:
        """Return those of them for which ``flags``, by slot, is true."""
        return Eligible(self._columns, self.flags & flags)


@dataclass(frozen=True, slots=True)
class _Class:
    """What workers have in common that filters look at, but labels and readiness."""

    cluster_id: int
    kind: str
    backends: frozenset[str]


class Directory:
    """Finds the workers of a requirement. ``version`` counts changes of what filters look at."""

    def __init__(self, columns: Columns, seats: Iterable[Seat]) -> None:
        self._columns = columns
        size = len(columns.seats)
        self._classes: list[_Class] = []
        self._class_of: dict[_Class, int] = {}
        self._class: Index = np.zeros(size, np.intp)
        self.ready: Flags = np.zeros(size, np.bool_)
        self._labels: dict[tuple[str, str], set[int]] = {}
        self._kept: dict[tuple[object, ...], Any] = {}
        self._samples: list[tuple[int, Seat]] | None = None
        for seat in seats:
            self.put(seat, None)

    def put(self, seat: Seat, old: Worker | None) -> None:
        """Take in a new or changed worker."""
        worker, slot = seat.worker, seat.slot
        if old is not None:
            for label in old.labels.items():
                self._labels[label].discard(slot)
        for label in worker.labels.items():
            self._labels.setdefault(label, set()).add(slot)
        key = _Class(worker.cluster_id, worker.kind, worker.backends)
        number = self._class_of.get(key)
        if number is None:
            number = self._class_of[key] = len(self._classes)
            self._classes.append(key)
        self._class[slot] = number
        self.ready[slot] = worker.ready
        self._forget()

    def drop(self, seat: Seat) -> None:
        """Take out a worker; its slot stays empty."""
        for label in seat.worker.labels.items():
            self._labels[label].discard(seat.slot)
        self._class[seat.slot] = self._no_class()
        self.ready[seat.slot] = False
        self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._samples = None

    def _no_class(self) -> int:
        key = _Class(-1, "", frozenset())
        number = self._class_of.setdefault(key, len(self._classes))
        if number == len(self._classes):
            self._classes.append(key)
        return number

    def find(self, request: Request, kinds: frozenset[str], backend: str) -> Eligible:
        """Return ready workers of ``kinds`` that the request selects and that have ``backend``."""
        selector = tuple(sorted(request.selector.items())) if request.selector else ()
        key = (request.cluster_id, selector, kinds, backend)
        return self.keep(key, lambda: self._find(request, kinds, backend))

    def candidates(self, cluster_id: int, selector: tuple[tuple[str, str], ...]) -> Eligible:
        """Return the workers of a cluster that carry all the labels, ready or not."""
        return self.keep(
            (cluster_id, selector),
            lambda: Eligible(self._columns, self.in_cluster(cluster_id) & self.labelled(selector)),
        )

    def keep(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what ``make`` returns, kept by ``key`` until a worker changes in what filters look at."""
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = make()
            if len(self._kept) >= _MOST:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = kept
        return cast("T", kept)

    def _find(self, request: Request, kinds: frozenset[str], backend: str) -> Eligible:
        flags = self._in_classes(
            each.cluster_id == request.cluster_id and each.kind in kinds and backend in each.backends
            for each in self._classes
        )
        selector = tuple(request.selector.items())
        return Eligible(self._columns, flags & self.ready & self.labelled(selector))

    def in_cluster(self, cluster_id: int) -> Flags:
        """Return by slot whether the worker is in the cluster."""
        return self._in_classes(each.cluster_id == cluster_id for each in self._classes)

    def of_kind(self, kind: str) -> Flags:
        """Return by slot whether the worker is of ``kind``."""
        return self._in_classes(each.kind == kind for each in self._classes)

    def known(self) -> Flags:
        """Return by slot whether there is a worker."""
        return self._in_classes(each.cluster_id != -1 for each in self._classes)

    def by_class(self, test: Mapping[int, bool]) -> Flags:
        """Return by slot what ``test`` says of its class."""
        return self._in_classes(test.get(number, False) for number in range(len(self._classes)))

    def samples(self) -> Sequence[tuple[int, Seat]]:
        """Return one worker of each class that has some."""
        if self._samples is None:
            numbers, first = np.unique(self._class, return_index=True)
            self._samples = [
                (int(number), self._columns.seats[slot])
                for number, slot in zip(numbers, first, strict=True)
                if self._classes[number].cluster_id != -1
            ]
        return self._samples

    def labelled(self, selector: tuple[tuple[str, str], ...]) -> Flags:
        """Return by slot whether the worker carries all the labels."""
        size = len(self._class)
        flags = np.ones(size, np.bool_)
        for label in selector:
            having = np.zeros(size, np.bool_)
            having[list(self._labels.get(label, ()))] = True
            flags &= having
        return flags

    def _in_classes(self, wanted: Iterable[bool]) -> Flags:
        flags = np.fromiter(wanted, np.bool_, len(self._classes))
        found: Flags = flags.take(self._class) if len(flags) else np.zeros(len(self._class), np.bool_)
        return found
