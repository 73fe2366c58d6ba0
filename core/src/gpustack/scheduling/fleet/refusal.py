"""Why a request was refused, from columns: the same answer as looking at every worker, in less than a millisecond."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.filters import PIPELINE, Step
from gpustack.scheduling.fit import per_gpu, possible
from gpustack.scheduling.fleet import audience
from gpustack.scheduling.fleet.columns import I64, Columns, Flags, Index
from gpustack.scheduling.fleet.eligible import Directory, Eligible
from gpustack.scheduling.fleet.kernels import Need
from gpustack.scheduling.fleet.seat import Seat, in_order
from gpustack.scheduling.plan import MOST_NAMED, Named, Refused
from gpustack.scheduling.request import Offer, Request, Way
from gpustack.scheduling.snapshot import MOST_MIB, mib_needed

#: The slots that pass, the counts by filter, and some others with the filter they failed.
Sifted = tuple[Index, tuple[Step, ...], list[tuple[int, Seat]]]

#: Beyond every distance.
_FAR = np.int64(1) << 60


def refusal(columns: Columns, directory: Directory, request: Request, workers: int) -> Refused:
    """Return what :func:`gpustack.scheduling.plan.refusal` does; nothing of ``request`` may fit anywhere."""
    slots, steps, out = _sift(columns, directory, request)
    near, too_large = _nearest(columns, directory, request, slots)
    seats = columns.seats
    named: list[tuple[Seat, int | None]] = [(seats[slot], None) for slot in near]
    named += [(seat, number) for number, seat in out[: MOST_NAMED - len(near)]]
    return Refused(
        request=request,
        workers=workers,
        steps=steps,
        short=len(slots),
        too_large=too_large,
        named=tuple(Named(seat.worker, in_order(seat.holdings), failed) for seat, failed in named),
    )


def _sift(columns: Columns, directory: Directory, request: Request) -> Sifted:
    """Return who passes all filters, the counts by filter, and of the others some that came furthest."""
    if request.files or request.offers:
        return _sift_anew(columns, directory, request)
    # Most often one object is the offer of many kinds.
    offers = {id(offer): offer for offer in request.kinds.values()}
    outlines = {number: _outline(offer) for number, offer in offers.items()}
    key = (
        "sifted",
        request.cluster_id,
        tuple(sorted(request.selector.items())),
        request.backend,
        request.files_elsewhere,
        tuple([(kind, outlines[id(offer)]) for kind, offer in request.kinds.items()]),
    )
    return directory.keep(key, lambda: _sift_anew(columns, directory, request))


def _outline(offer: Offer) -> tuple[object, ...]:
    """Return what decides which filters a worker with this offer passes."""
    backends = tuple(way.backend for way in offer.ways)
    return backends, bool(offer.refusals), bool(offer.platform_refusals)


def _sift_anew(columns: Columns, directory: Directory, request: Request) -> Sifted:
    left = directory.known()
    failed: list[Flags] = []
    steps = []
    for each, flags in zip(PIPELINE, _by_filter(columns, directory, request), strict=True):
        passed = left & flags
        steps.append(Step(each.name, int(passed.sum()), int(left.sum())))
        failed.append(left & ~passed)
        left = passed
    out: list[tuple[int, Seat]] = []
    for number in reversed(range(len(PIPELINE))):
        some = np.flatnonzero(failed[number])[: MOST_NAMED - len(out)]
        out += [(number, columns.seats[slot]) for slot in some]
    return np.flatnonzero(left), tuple(steps), out


def _by_filter(columns: Columns, directory: Directory, request: Request) -> list[Flags]:
    everyone = np.ones(len(columns.ram), np.bool_)
    tests = [each.test for each in PIPELINE]
    selector = tuple(sorted(request.selector.items()))
    first = [
        directory.in_cluster(request.cluster_id),
        directory.labelled(selector),
        everyone,  # a choice by hand does not come here
        directory.ready,
        audience.files_ready(columns, request),
    ]
    return [*first, *(_asked(columns, directory, request, test) for test in tests[len(first) :])]


def _asked(
    columns: Columns, directory: Directory, request: Request, test: Callable[..., str | None]
) -> Flags:
    """Ask one worker of each class, or all when some have offers of their own."""
    if not request.offers:
        return directory.by_class(
            {number: test(seat.worker, request) is None for number, seat in directory.samples()}
        )
    return np.fromiter(
        (test(seat.worker, request) is None for seat in columns.seats), np.bool_, len(columns.seats)
    )


def _nearest(
    columns: Columns, directory: Directory, request: Request, slots: Index
) -> tuple[list[int], bool]:
    """Return the slots that miss least, and whether none could hold the request even when empty."""
    if not len(slots):
        return [], False
    found = audience.tiers(columns, directory, request)
    ways = [each for tier in found for each in tier]
    too_large = not any(_possible(columns, eligible, way) for way, eligible in ways)
    if len(ways) == 1 and not ways[0][0].followers:
        way, eligible = ways[0]
        distance = _distance(columns, eligible, _need(way, way.claim))
        slots = eligible.slots
    else:
        least = np.full(len(columns.ram), _FAR, np.int64)
        for way, eligible in ways:
            for claim in dict.fromkeys(way.members):
                some = eligible.slots
                least[some] = np.minimum(least[some], _distance(columns, eligible, _need(way, claim)))
        distance = least.take(slots)
    if len(distance) > MOST_NAMED:
        edge = np.partition(distance, MOST_NAMED - 1)[MOST_NAMED - 1]
        (near,) = np.nonzero(distance <= edge)
        slots, distance = slots[near], distance[near]
    order = np.argsort(distance, kind="stable")[:MOST_NAMED]
    return slots[order].tolist(), too_large


def _need(way: Way, claim: ResourceClaim) -> Need:
    return Need(claim.gpus, mib_needed(per_gpu(claim)), mib_needed(claim.ram), way.linked, False)


def _distance(columns: Columns, eligible: Eligible, need: Need) -> I64:
    """Return by eligible slot the MiB that a claim lacks, 0 where it fits."""
    slots = eligible.slots
    ram = np.minimum(need.ram + columns.unified.take(slots) * (need.share * need.gpus), MOST_MIB + 1)
    lacking: I64 = np.maximum(ram - columns.ram.take(slots), 0)
    if not need.gpus:
        return lacking
    # Of the sets that GPUs may be chosen from, all of them miss least, unless they must be linked.
    linked = need.linked and need.gpus > 1
    rows = eligible.rows(1, linked=True) if linked else eligible.whole()
    if not len(rows):
        return lacking
    absent = np.maximum(need.gpus - columns.row_gpus.take(rows), 0).astype(np.int64)
    some_absent = bool(absent.any())
    short: I64 = np.zeros(len(rows), np.int64)
    by_size = columns.by_size()
    for number in range(columns.width - min(need.gpus, columns.width), columns.width):
        free = by_size[number].take(rows)
        missing = np.maximum(need.share - free, 0)
        short += missing * (free >= 0) if some_absent else missing
    if not linked:
        lacking += short
        return lacking
    key = (absent << 40) | short
    owners = columns.row_slot.take(rows)
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    nearest: I64 = np.zeros(len(columns.ram), np.int64)
    nearest[owners[first]] = np.minimum.reduceat(key, first) & ((1 << 40) - 1)
    lacking += nearest.take(slots)
    return lacking


def _possible(columns: Columns, eligible: Eligible, way: Way) -> bool:
    """Tell whether ``way`` fitted if nothing else ran; of several members each is looked at by itself."""
    large = [_large(columns, eligible, _need(way, claim)) for claim in dict.fromkeys(way.members)]
    if not way.followers:
        if len(large[0]) or not way.claim.pieces:
            return bool(len(large[0]))
        # Evenly it would not fit; in pieces it depends on each GPU.
        return any(
            possible(columns.seats[slot].room(), way.claim, linked=way.linked)
            for slot in eligible.slots.tolist()
        )
    some: Flags = np.zeros(len(columns.ram), np.bool_)
    for slots in large:
        some[slots] = True
    sizes = np.bincount(columns.fabric[some])
    return bool(len(sizes)) and int(sizes.max()) >= len(way.members)


def _large(columns: Columns, eligible: Eligible, need: Need) -> Index:
    """Return the slots that could hold a claim when nothing else ran there."""
    if need.gpus > columns.width:
        return eligible.slots[:0]
    slots = eligible.slots
    if need.gpus:
        linked = need.linked and need.gpus > 1
        rows = eligible.rows(need.gpus, linked=True) if linked else eligible.whole()
        rows = rows[columns.most[columns.width - need.gpus].take(rows) >= need.share]
        slots = columns.row_slot.take(rows)
    ram = need.ram + columns.unified.take(slots) * (need.share * need.gpus)
    return slots[columns.ram_most.take(slots) >= ram]
