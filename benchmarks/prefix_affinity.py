"""What the choice of an instance is worth: simulated engines with prefix caches, and the chooser that the gateway runs.

Nothing here is measured on a clock: arrivals, prompts and engines come from seeds, so that each run prints the same
figures. Ratios are to round robin or to least outstanding requests, over the same requests.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from random import Random
from statistics import fmean

from simulated_engines import ENGINES, SLOTS, Policy, Request, Run, requests

from gpustack.dataplane.choosing import Chooser, Hints, Outcome
from gpustack.plugin.routing import Route, RoutingTable, Target

SEEDS = (11, 23, 47)
REQUESTS = 12_000
LOAD = 0.85
#: Of the saturation, where nothing is shared: the choice must not cost anything at any of them.
LOADS = (0.3, 0.6, 0.85, 0.95)
#: Over of arrived, in the second half of a run, for a rate to count as one that the engines keep up with.
SERVED = 0.98

Clock = Callable[[], float]


class RoundRobin:
    """One after the other."""

    def __init__(self, clock: Clock) -> None:
        self._turn = count()

    def pick(self, request: Request) -> int:
        """Return the next."""
        return next(self._turn) % ENGINES

    def first(self, request: Request) -> None:
        """Do nothing."""

    def done(self, request: Request, outcome: Outcome) -> None:
        """Do nothing."""


class LeastOutstanding(RoundRobin):
    """The one with the fewest requests; equals take turns."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._loads = [0] * ENGINES

    def pick(self, request: Request) -> int:
        """Return the one with the fewest."""
        turn = next(self._turn)
        found = min((each % ENGINES for each in range(turn, turn + ENGINES)), key=self._loads.__getitem__)
        self._loads[found] += 1
        return found

    def done(self, request: Request, outcome: Outcome) -> None:
        """Count it no longer."""
        self._loads[request.engine] -= 1


class Gateway:
    """The chooser that the gateway runs."""

    def __init__(self, clock: Clock, weights: Sequence[int] = (100,) * ENGINES) -> None:
        targets = tuple(
            Target(instance_id=number, host="", port=0, slots=SLOTS, weight=weight)
            for number, weight in enumerate(weights)
        )
        self._route = Route(name="m", created=0, targets=targets)
        self.chooser = Chooser(clock, Random(1))
        self.chooser.apply(RoutingTable(routes={"m": self._route}))

    def pick(self, request: Request) -> int:
        """Ask it."""
        request.lease = self.chooser.pick(self._route, Hints(request.shared + request.own, request.marks))
        assert request.lease is not None
        return request.lease.target.instance_id

    def first(self, request: Request) -> None:
        """Tell it."""
        assert request.lease is not None
        request.lease.first_byte()

    def done(self, request: Request, outcome: Outcome) -> None:
        """Tell it."""
        assert request.lease is not None
        request.lease.done(outcome, request.answer if outcome is Outcome.OK else 0)


Make = Callable[[Clock], Policy]
#: Of one kind of requests, the same for each seed.
Asked = Sequence[Sequence[Request]]


def saturation(policy: Make, asked: Sequence[Request]) -> float:
    """Return the highest rate, in requests a second, that the engines keep up with."""
    low, high = 5.0, 100.0
    while high / low > 1.01:
        rate = (low * high) ** 0.5
        run = Run(policy).play(asked, rate, to_the_end=False)
        half = len(asked) // 2
        middle = run.played[half].arrived
        over = sum(1 for each in run.played if each.finished > middle)
        low, high = (rate, high) if over >= SERVED * (len(asked) - half) else (low, rate)
    return low


def latencies(run: Run, *, shared: bool | None = None) -> tuple[float, float]:
    """Return the mean and the 99th percentile of whole requests, in seconds, without the first quarter."""
    warm = run.played[len(run.played) // 4 :]
    found = sorted(
        each.finished - each.arrived for each in warm if shared is None or shared is (each.group >= 0)
    )
    return fmean(found), found[int(len(found) * 0.99)]


def say(
    title: str, ratio: float, against: str, *, least: float = 0.0, most: float = 0.0, detail: str = ""
) -> bool:
    """Print a ratio, with its goal if it has one; return whether it was reached."""
    reached = ratio >= least and (not most or ratio <= most)
    goal = f"goal >= {least:g}" if least else f"goal <= {most:g}" if most else ""
    verdict = "" if not goal else "ok" if reached else "MISSED"
    print(f"{title:<52} {ratio:>6.3f} x {against:<18} {goal:<13} {verdict:<7} {detail}", flush=True)
    return reached


def mean_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the ratio of the means over the seeds."""
    return fmean(ours) / fmean(theirs)


def throughput(title: str, asked: Asked, against: Make, name: str, *, least: float) -> tuple[bool, float]:
    """Compare saturations; return also that of ``against``."""
    ours = [saturation(Gateway, each) for each in asked]
    theirs = [saturation(against, each) for each in asked]
    detail = f"{fmean(ours):.1f} to {fmean(theirs):.1f} requests/s"
    return say(title, mean_ratio(ours, theirs), name, least=least, detail=detail), fmean(theirs)


def latency(
    title: str, asked: Asked, rate: float, *, shared: bool | None = None, speeds: Sequence[float] = ()
) -> bool:
    """Compare latencies with least outstanding; the ratio is that of the worst seed."""
    results = []
    for policy in (Gateway, LeastOutstanding):
        runs = (Run(policy, speeds or (1.0,) * ENGINES).play(each, rate) for each in asked)
        results.append([latencies(run, shared=shared) for run in runs])
    reached = True
    for at, name in enumerate(("mean", "p99")):
        ours, theirs = ([each[at] for each in result] for result in results)
        detail = f"{fmean(ours):.2f} to {fmean(theirs):.2f} s at {rate:.1f} requests/s"
        ratio = max(our / their for our, their in zip(ours, theirs, strict=True))
        reached &= say(f"{title}, {name} latency", ratio, "least outstanding", most=1.03, detail=detail)
    return reached


def canary(asked: Sequence[Request], rate: float) -> bool:
    """One target of 5 % beside six that share the rest, and one without weight: the shares are to be exact."""
    weights = (30, 0, *[95] * 6)
    run = Run(partial(Gateway, weights=weights)).play(asked, rate)
    sent = Counter(each.engine for each in run.played)
    share = sent[0] / len(asked)
    say("canary of 5 %: its share of the requests", share / 0.05, "its weight", least=0.99, most=1.01)
    print(f"  the target of weight 0 got {sent[1]} of {len(asked)} requests")
    return abs(share / 0.05 - 1) <= 0.01 and not sent[1]


def failing(asked: Sequence[Request], rate: float) -> bool:
    """One engine fails at once for the middle third; without any retry, few requests are to be lost."""
    third = len(asked) // 3
    parts = [asked[:third], asked[third : 2 * third], asked[2 * third :]]
    lost = []
    back = 0
    for policy in (Gateway, LeastOutstanding, RoundRobin):
        run = Run(policy)
        for at, part in enumerate(parts):
            run.engines[0].failing = at == 1
            begin = part[0].arrived
            shifted = [_earlier(each, begin) for each in part]
            run.play(shifted, rate, to_the_end=at == 2)
        lost.append(sum(each.failed for each in run.played[third : 2 * third]) / third)
        if policy is Gateway:
            tail = run.played[-third // 2 :]
            back = sum(each.engine == 0 for each in tail) / len(tail) * ENGINES
    reached = say(
        "one engine fails: requests lost, without retries", lost[0] / lost[2], "round robin", most=0.1,
        detail=f"{lost[0]:.2%} to {lost[2]:.2%}; least outstanding {lost[1]:.2%}",
    )  # fmt: skip
    return reached & say("  its share after it is well again", back, "an eighth", least=0.5)


def _earlier(request: Request, by: float) -> Request:
    found = Request(**{name: getattr(request, name) for name in Request.__slots__})
    found.arrived -= by
    return found


def main() -> int:
    """Print all; the exit status tells whether every goal was reached."""
    logging.disable(logging.WARNING)
    alike = [requests(seed, REQUESTS) for seed in SEEDS]
    reached, robin = throughput("shared prefixes, saturation", alike, RoundRobin, "round robin", least=1.4)
    ok = [reached]
    ok.append(throughput("  the same", alike, LeastOutstanding, "least outstanding", least=1.4)[0])
    ok.append(latency("shared prefixes", alike, LOAD * robin))
    for title, kind in (
        ("nothing shared, equal lengths", {"alike": 0.0}),
        ("nothing shared, mixed lengths", {"alike": 0.0, "spread": True}),
    ):
        asked = [requests(seed, REQUESTS, **kind) for seed in SEEDS]
        reached, least = throughput(
            f"{title}, saturation", asked, LeastOutstanding, "least outstanding", least=0.97
        )
        ok.append(reached)
        ok += [latency(f"  at {load:.0%} of it", asked, load * least) for load in LOADS]
    half = [requests(seed, REQUESTS, alike=0.5) for seed in SEEDS]
    # What least outstanding keeps up with there.
    ok.append(latency("half share nothing: only those", half, LOAD * 18.0, shared=False))
    one = [requests(seed, REQUESTS, prefixes=1) for seed in SEEDS]
    reached, least = throughput(
        "one prefix in all, saturation", one, LeastOutstanding, "least outstanding", least=0.97
    )
    ok += [reached, latency("one prefix in all", one, LOAD * least)]
    slow = (0.5, *[1.0] * (ENGINES - 1))
    ok.append(latency("one engine of half speed", alike, LOAD * robin * 7.5 / 8, speeds=slow))
    ok.append(canary(alike[0], LOAD * robin))
    ok.append(failing(alike[0], LOAD * robin))
    return 0 if all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
