"""From what a request says of kinds and of single workers to the workers of each of its ways."""

from __future__ import annotations

import numpy as np

from gpustack.scheduling.fleet.columns import Columns, Flags
from gpustack.scheduling.fleet.eligible import Directory, Eligible
from gpustack.scheduling.request import Offer, Request, Way

#: Ways of one rank, each with the workers that offer it.
Tier = list[tuple[Way, Eligible]]


def tiers(columns: Columns, directory: Directory, request: Request) -> list[Tier]:
    """Return the ways of ``request`` by rank: GPUs before the CPU, then in the order of the offers."""
    if request.files or request.offers:
        return _by_worker(columns, directory, request)
    everywhere = request.files_elsewhere
    if everywhere is None or not everywhere.ready:
        return []
    found: dict[tuple[int, int], dict[Way, list[str]]] = {}
    for offer, kinds in _shared(request):
        for index, way in enumerate(offer.ways):
            found.setdefault(way.rank(index), {}).setdefault(way, []).extend(kinds)
    return [
        [(way, directory.find(request, frozenset(kinds), way.backend)) for way, kinds in found[rank].items()]
        for rank in sorted(found)
    ]


def _shared(request: Request) -> list[tuple[Offer, list[str]]]:
    """Return each offer with its kinds; most often one object serves many kinds."""
    groups: dict[int, tuple[Offer, list[str]]] = {}
    for kind, offer in request.kinds.items():
        group = groups.get(id(offer))
        if group is None:
            groups[id(offer)] = (offer, [kind])
        else:
            group[1].append(kind)
    return list(groups.values())


def files_ready(columns: Columns, request: Request) -> Flags:
    """Return by slot whether the model's files are there."""
    everywhere = request.files_elsewhere
    size = len(columns.ram)
    flags = np.full(size, everywhere is not None and everywhere.ready, np.bool_)
    if request.files:
        for slot, seat in enumerate(columns.seats):
            files = request.files.get(seat.worker.id)
            if files is not None:
                flags[slot] = files.ready
    return flags


def _by_worker(columns: Columns, directory: Directory, request: Request) -> list[Tier]:
    """Look at each worker: some have offers or files of their own."""
    selector = tuple(sorted(request.selector.items()))
    flags = directory.in_cluster(request.cluster_id) & directory.ready & directory.labelled(selector)
    flags &= files_ready(columns, request)
    found: dict[tuple[int, int], dict[Way, list[int]]] = {}
    for slot in np.flatnonzero(flags).tolist():
        worker = columns.seats[slot].worker
        for index, way in enumerate(request.offer(worker).ways):
            if way.backend in worker.backends:
                found.setdefault(way.rank(index), {}).setdefault(way, []).append(slot)
    return [
        [(way, Eligible(columns, _only(len(flags), slots))) for way, slots in found[rank].items()]
        for rank in sorted(found)
    ]


def _only(size: int, slots: list[int]) -> Flags:
    flags = np.zeros(size, np.bool_)
    flags[slots] = True
    return flags
