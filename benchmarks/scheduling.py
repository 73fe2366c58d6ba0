"""What the scheduler can do on one core: decisions a second, exactness, packing, and how it grows with the fleet.

The stream is mixed: 70 % of requests want one GPU or a part of it, 15 % two, 10 % four or eight, 5 % several workers at
once; a fifth have selectors. Instances leave so that the fleet is between 50 and 95 % full. Times are CPU seconds of
this thread, all of it counted: refusals, claims and releases, and the records of all decisions, made into the text that
the database gets. What else runs on the machine makes them longer, by its caches and its memory; so goals are for the
fastest part of a run, and the whole run is printed beside it. ``--plot FILE`` writes the growth as an SVG picture.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import report
from scheduling_stream import MACHINES, Stream, workers

from gpustack.scheduling import Packing, Placed, Refused, Request, place
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.records import RecordedFleet
from gpustack.server.decisions import pack

SIZES = (100, 300, 1_000, 3_000, 5_000, 10_000)
#: The size that has a rate to keep.
MAIN = 5_000
DECISIONS = 20_000
#: Decisions of one part of a run: enough that each has the same mix.
PART = 2_000
#: Decisions that are compared with a look at every worker, which takes its time.
COMPARED = {100: 2_000, 300: 500, 1_000: 200, 3_000: 40, MAIN: 40, 10_000: 10}
#: Decisions of one page of the record.
PAGE = 500
EIGHT = 8
PACKED_WORKERS, PACKED_DECISIONS, PACKED_SEEDS = 1_000, 12_000, (1, 2)


class Tenants:
    """Who is there, and how full that makes the fleet."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._dice = random.Random(seed)
        self._total = sum(gpu.total for each in fleet.workers() for gpu in each.gpus)
        self._taken = 0
        self._there: list[tuple[int, int]] = []

    @property
    def full(self) -> float:
        """Return the part of all GPU memory that is claimed."""
        return self._taken / self._total

    def come(self, placed: Placed) -> None:
        """Claim what was placed."""
        size = 0
        for each in placed.holdings():
            self._fleet.hold(each)
            size += sum(each.vram.values())
        self._taken += size
        self._there.append((placed.instance_id, size))

    def leave(self) -> None:
        """Let one go, any of them."""
        at = self._dice.randrange(len(self._there))
        self._there[at], self._there[-1] = self._there[-1], self._there[at]
        number, size = self._there.pop()
        self._taken -= size
        self._fleet.release(number)


@dataclass
class Rate:
    """What one run has taken, in seconds."""

    workers: int
    decisions: list[float] = field(default_factory=list)
    #: Claims, releases and records.
    changes: float = 0.0
    placed: int = 0
    #: What each part took for one placement.
    parts: list[float] = field(default_factory=list)
    compared: int = 0
    differing: int = 0

    @property
    def per_second(self) -> float:
        """Return the placements a second, everything counted."""
        return self.placed / (sum(self.decisions) + self.changes)

    @property
    def per_placement(self) -> float:
        """Return the microseconds for each in the fastest part."""
        return min(self.parts) * 1e6

    def end_part(self) -> None:
        """Note what the decisions since the last part have taken."""
        self._marks.append((sum(self.decisions) + self.changes, self.placed))
        (before, placed), (after, now) = self._marks[-2:]
        self.parts.append((after - before) / (now - placed))

    _marks: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])

    def percentile(self, part: float) -> float:
        """Return the milliseconds that ``part`` of the decisions take at most."""
        return sorted(self.decisions)[int(part * len(self.decisions))] * 1e3


def spent(what: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    began = time.thread_time()
    what()
    return time.thread_time() - began


def write_down(fleet: RecordedFleet) -> None:
    """Make a page of the record."""
    pack(fleet.take(PAGE))


def rate(count: int, decisions: int, compared: int) -> Rate:
    """Run the stream on a fleet between half and almost full."""
    fleet = RecordedFleet(workers(count, seed=1))
    stream, tenants, dice = Stream([*fleet.workers()], seed=2), Tenants(fleet, seed=3), random.Random(4)
    while tenants.full < 0.5:
        match fleet.place(stream.next()):
            case Placed() as placed:
                tenants.come(placed)
    # What came before needs no record: it begins with the fleet as it is now.
    fleet.decide(stream.next())
    fleet.take(PAGE)
    gc.collect()
    gc.freeze()
    found, bound = Rate(count), 0.95
    every = decisions // compared
    while len(found.decisions) < decisions:
        request = stream.next()
        began = time.thread_time()
        answer = fleet.decide(request)
        found.decisions.append(time.thread_time() - began)
        if len(found.decisions) % every == 0:
            found.compared += 1
            found.differing += answer != place(fleet.snapshot(), request)
        if isinstance(answer, Placed):
            found.placed += 1
            found.changes += spent(partial(tenants.come, answer))
        if fleet.waiting >= PAGE:
            found.changes += spent(partial(write_down, fleet))
        if tenants.full >= bound:
            low = dice.uniform(0.5, 0.93)
            while tenants.full > low:
                found.changes += spent(tenants.leave)
            bound = dice.uniform(low + 0.02, 0.95)
        if len(found.decisions) % PART == 0:
            found.end_part()
    gc.unfreeze()
    return found


def refused_eights(packing: Packing, seed: int) -> tuple[int, int]:
    """Return how many requests for eight GPUs of a fleet that is 90 % full were refused, and how many there were."""
    fleet = Fleet(workers(PACKED_WORKERS, seed), packing=packing)
    stream = Stream([*fleet.workers()], seed + 100, binpack_only=True)
    tenants = Tenants(fleet, seed + 200)
    refused = asked = decisions = tries = 0
    measuring = False
    while decisions < PACKED_DECISIONS:
        request = stream.next()
        tries += 1
        # Best fit may never get as full as that by itself.
        measuring = measuring or tenants.full >= 0.9 or tries > 60 * PACKED_WORKERS
        answer = fleet.place(request)
        if measuring:
            decisions += 1
            if wants_eight(request) and not (isinstance(answer, Refused) and answer.too_large):
                asked += 1
                refused += isinstance(answer, Refused)
        if isinstance(answer, Placed):
            tenants.come(answer)
        while tenants.full >= 0.9:
            tenants.leave()
    return refused, asked


def wants_eight(request: Request) -> bool:
    """Tell whether a request is for all GPUs of one worker."""
    ways = [way for each in MACHINES for way in request.kinds[each.kind].ways]
    return bool(ways) and ways[0].claim.gpus == EIGHT and not ways[0].followers


def packing() -> float:
    """Print how many large requests are refused, and return how many of those that best fit refuses."""
    parts = {}
    for each in Packing:
        counts = [refused_eights(each, seed) for seed in PACKED_SEEDS]
        refused, asked = (sum(column) for column in zip(*counts, strict=True))
        parts[each] = refused / asked
        print(
            f"  {each.value}: {refused} of {asked} requests for {EIGHT} GPUs refused ({parts[each]:.1%})",
            flush=True,
        )
    ratio: float = parts[Packing.WHOLE] / parts[Packing.BEST_FIT]
    return ratio


def plot(rates: Sequence[Rate]) -> str:
    """Return a bar for each size of fleet."""
    longest = max(each.per_placement for each in rates)
    return "\n".join(
        f"  {each.workers:>6} workers {'█' * round(40 * each.per_placement / longest):<40} "
        f"{each.per_placement:6.0f} µs"
        for each in rates
    )


def picture(rates: Sequence[Rate]) -> str:
    """Return the same as an SVG picture."""
    longest = max(each.per_placement for each in rates)
    rows = []
    for row, each in enumerate(rates):
        top, width = 50 + 30 * row, 300 * each.per_placement / longest
        rows += [
            f'<text x="110" y="{top + 15}" text-anchor="end">{each.workers:,}</text>',
            f'<rect x="120" y="{top}" width="{width:.0f}" height="20" fill="#4a7"/>',
            f'<text x="{130 + width:.0f}" y="{top + 15}">{each.per_placement:.0f} µs</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="520" height="{70 + 30 * len(rates)}" '
        'font-family="sans-serif" font-size="14">'
        '<text x="20" y="25">CPU time for a placement, by workers of 8 GPUs</text>'
        f"{''.join(rows)}</svg>\n"
    )


def main() -> int:
    """Print all figures; the exit status is 1 when one misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the growth as an SVG picture")
    parser.add_argument("--decisions", type=int, default=DECISIONS, help="decisions for each size of fleet")
    wanted = parser.parse_args()
    rates = []
    for size in SIZES:
        found = rate(size, wanted.decisions, COMPARED[size])
        rates.append(found)
        print(
            f"{size:>6} workers: {1e6 / found.per_placement:6.0f} placements/s ({found.per_second:.0f} in all), "
            f"{len(found.decisions) / sum(found.decisions):6.0f} decisions/s in all, "
            f"p50 {found.percentile(0.5):.3f} ms, p99 {found.percentile(0.99):.3f} ms, "
            f"{found.placed} of {len(found.decisions)} placed, {found.differing} of {found.compared} differ from the scan",
            flush=True,
        )
    print(plot(rates))
    if wanted.plot is not None:
        wanted.plot.write_text(picture(rates))
    by_size = {each.workers: each for each in rates}
    main_rate = by_size[MAIN]
    ratio = packing()
    growth = by_size[10_000].per_placement / by_size[100].per_placement
    goals = [
        (f"CPU time per placement, {MAIN} workers", main_rate.per_placement, "µs", 100),
        (f"99th percentile, {MAIN} workers", main_rate.percentile(0.99), "ms", 2),
        ("time per placement, 10,000 over 100 workers", growth, "x", 4),
        ("decisions that differ from the scan", sum(each.differing for each in rates), "", 0),
        (f"refused requests for {EIGHT} GPUs, of best fit's", ratio, "x", 0.75),
    ]
    for title, value, unit, goal in goals:
        report(title, value, unit, floor=0, floor_name="", goal=goal)
    return int(any(value > goal for _, value, _, goal in goals))


if __name__ == "__main__":
    sys.exit(main())
