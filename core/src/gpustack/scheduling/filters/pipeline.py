"""Runs filters over workers and keeps every reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Worker


@dataclass(frozen=True, slots=True)
class Filter:
    """One test of a worker. ``test`` returns why the worker fails, or None when it passes."""

    #: Completes "3 of 5 workers …".
    name: str
    test: Callable[[Worker, Request], str | None]


@dataclass(frozen=True, slots=True)
class Step:
    """How many workers came to a filter and how many passed it."""

    name: str
    matched: int
    asked: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Who passed all filters, and of every other worker the filter and reason it failed by."""

    passed: tuple[Worker, ...]
    reasons: dict[int, str]
    failed_at: dict[int, str]
    steps: tuple[Step, ...]


def sift(workers: Iterable[Worker], request: Request, filters: Sequence[Filter]) -> Verdicts:
    """Ask ``filters`` in order; each sees only the workers that passed those before it."""
    left = tuple(workers)
    reasons: dict[int, str] = {}
    failed_at: dict[int, str] = {}
    steps: list[Step] = []
    for each in filters:
        passed: list[Worker] = []
        for worker in left:
            if (reason := each.test(worker, request)) is None:
                passed.append(worker)
            else:
                reasons[worker.id] = reason
                failed_at[worker.id] = each.name
        steps.append(Step(each.name, len(passed), len(left)))
        left = tuple(passed)
    return Verdicts(left, reasons, failed_at, tuple(steps))
