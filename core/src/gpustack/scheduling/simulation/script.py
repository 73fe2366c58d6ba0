"""What happens when, worked out before the simulation: so two policies are given the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpustack.kit.errors import InvalidInput
from gpustack.scheduling.simulation.described import Failures, Kind, Workload
from gpustack.scheduling.snapshot import Worker

#: More would not end in any time that people wait.
MOST_ARRIVALS = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request that comes at ``at`` seconds and runs for ``lasts``; None is for ever."""

    at: float
    kind: Kind
    lasts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A worker that is lost at ``at`` seconds, for ``lasts``."""

    at: float
    worker_id: int
    lasts: float


def arrivals(workload: Workload, seed: int) -> list[Arrival]:
    """Return all requests of the workload in the order in which they come."""
    found = [each for number, kind in enumerate(workload.kinds) for each in _of(kind, number, workload, seed)]
    found.sort(key=lambda each: each.at)
    return found


def _of(kind: Kind, number: int, workload: Workload, seed: int) -> Iterator[Arrival]:
    # A stream of its own for each kind: one more kind does not change the others.
    dice = random.Random(f"{seed}/{number}/{kind.name}")
    for count, at in enumerate(_moments(kind.every, kind.at, kind.count, workload.duration, dice)):
        if count >= MOST_ARRIVALS:
            raise InvalidInput(f"{kind.name}: more than {MOST_ARRIVALS} requests are too many to simulate")
        lasts = None if kind.lasts is None else dice.expovariate(1 / kind.lasts) if kind.lasts else 0.0
        yield Arrival(at=at, kind=kind, lasts=lasts)


def outages(workload: Workload, workers: Sequence[Worker], seed: int) -> list[Outage]:
    """Return all failures in the order in which they come. Raises InvalidInput for a worker that is not there."""
    by_name = {each.name: each.id for each in workers}
    found: list[Outage] = []
    for number, failures in enumerate(workload.failures):
        if failures.worker and failures.worker not in by_name:
            raise InvalidInput(f"failures[{number}].worker: the fleet has no worker {failures.worker!r}")
        found += _fails(failures, number, workload, by_name, seed)
    return sorted(found, key=lambda each: (each.at, each.worker_id))


def _fails(
    failures: Failures, number: int, workload: Workload, by_name: dict[str, int], seed: int
) -> Iterator[Outage]:
    dice = random.Random(f"{seed}/failures/{number}")
    ids = sorted(by_name.values())
    for at in _moments(failures.every, failures.at, None if failures.every else 1, workload.duration, dice):
        worker_id = by_name[failures.worker] if failures.worker else dice.choice(ids)
        yield Outage(at=at, worker_id=worker_id, lasts=failures.lasts)


def _moments(
    every: float | None, at: float, count: int | None, duration: float, dice: random.Random
) -> Iterator[float]:
    if every is None:
        yield from [at] * (count or 1) if at <= duration else []
        return
    left = count
    moment = dice.expovariate(1 / every)
    while moment <= duration and left != 0:
        yield moment
        moment += dice.expovariate(1 / every)
        left = None if left is None else left - 1
