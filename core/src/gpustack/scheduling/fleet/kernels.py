"""The cheapest place for one claim, or the cost of every place, over columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpustack.scheduling.fleet.columns import I64, NOWHERE, Columns, Index
from gpustack.scheduling.fleet.eligible import Eligible
from gpustack.scheduling.scorers.candidate import LOCAL, MOST_RAM
from gpustack.scheduling.scorers.spread import AWAY_SHIFT, COUNT_SHIFT

_OVER = np.uint32(1 << 31)


@dataclass(slots=True)
class Need:
    """A claim in MiB: ``share`` on each of ``gpus`` GPUs."""

    gpus: int
    share: int
    ram: int
    linked: bool
    spread: bool


@dataclass(slots=True)
class Extra:
    """What else counts, by slot: ``adjust`` is added to costs, and ``local`` slots have the files."""

    #: For spread: instances of the same model and local files.
    adjust: I64 | None
    #: For binpack: slots that have the files.
    local: Index | None


@dataclass(slots=True)
class Spot:
    """A slot and the row of its GPUs; -1 on the CPU."""

    cost: int
    slot: int
    row: int


def best(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> Spot | None:
    """Return the cheapest place for ``need``; of equal ones that of the smaller slot, then row."""
    if need.gpus > columns.width:
        return None
    found = _roomy(columns, eligible, need, extra)
    if extra.local is None or need.spread or found is None:
        return found
    local = extra.local[eligible.flags.take(extra.local)]
    if not len(local):
        return found
    other = _roomy(columns, Eligible(columns, slots=local), need, extra)
    if other is not None:
        other.cost -= LOCAL * max(1, need.gpus)
        if (other.cost, other.slot) <= (found.cost, found.slot):
            return other
    return found


def _roomy(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> Spot | None:
    """Look at the RAM of the winner only, and of all when that is not enough."""
    found = _pick(columns, eligible, need, extra)
    if found is None or not need.gpus:
        return found
    slot = found.slot
    if columns.ram[slot] >= need.ram + need.share * need.gpus * int(columns.unified[slot]):
        return found
    enough = columns.ram >= need.ram + columns.unified * (need.share * need.gpus)
    return _pick(columns, eligible.where(enough), need, extra)


def _pick(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> Spot | None:
    slots = eligible.slots
    if not len(slots):
        return None
    if need.spread:
        return _spread(columns, eligible, need, extra)
    if need.gpus == 0:
        free = np.minimum(columns.ram.take(slots), MOST_RAM)
        free -= need.ram
        at, cost = _least(free)
        return None if cost < 0 else Spot(cost, int(slots[at]), -1)
    if need.gpus == 1:
        free = columns.free.take(slots, axis=0)
        free -= need.share
        free >>= 31
        free |= columns.price.take(slots, axis=0)
        at, cost = _least(free.ravel())
        slot = int(slots[at // columns.width]) if cost >= 0 else 0
        return None if cost < 0 else Spot(cost - need.share, slot, int(columns.last_row[slot]))
    # Linked GPUs cost less than any others, so these are looked at only when none of those fit.
    found = _run(columns, need, eligible.rows(need.gpus, linked=True))
    if found is not None or need.linked:
        return found
    return _run(columns, need, eligible.rows(need.gpus, linked=False))


def _run(columns: Columns, need: Need, rows: Index) -> Spot | None:
    """Return the cheapest GPUs next to each other in the order of their free memory, of all ``rows``."""
    if not len(rows):
        return None
    runs = columns.runs(need.gpus)
    least = runs.least.take(rows, axis=0)
    least -= need.share
    least >>= 31
    least |= runs.cost.take(rows, axis=0)
    at, cost = _least(least.ravel())
    if cost < 0:
        return None
    row = int(rows[at // least.shape[1]])
    return Spot(cost - need.share * need.gpus, int(columns.row_slot[row]), row)


def _least(costs: np.ndarray[tuple[int], np.dtype[np.int32]]) -> tuple[int, int]:
    """Return where the smallest cost is, and the cost: negative when all are."""
    at = int(costs.view(np.uint32).argmin())
    return at, int(costs[at])


def _spread(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> Spot | None:
    rows, slots, cost = spread_costs(columns, eligible, need, extra)
    if not len(cost):
        return None
    at = int(cost.argmin())
    found = int(cost[at])
    if found >= NOWHERE >> 1:
        return None
    slot = int(slots[at])
    return Spot(found, slot, int(rows[at]) if need.gpus else -1)


def spread_costs(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> tuple[Index, Index, I64]:
    """Return rows, their slots and costs; ``NOWHERE`` where a row has too little memory."""
    if need.gpus == 0:
        slots = eligible.slots
        free = np.minimum(columns.ram.take(slots), MOST_RAM).astype(np.int64) - need.ram
        cost = (columns.count.take(slots) << COUNT_SHIFT) + (1 << AWAY_SHIFT) - free
        cost[free < 0] = NOWHERE
        rows = slots
    else:
        tops = columns.tops(need.gpus)
        rows = eligible.whole() if need.gpus == 1 else eligible.rows(need.gpus, linked=need.linked)
        slots = columns.row_slot.take(rows)
        cost = tops.cost.take(rows)
        cost += need.share * need.gpus
        cost[tops.least.take(rows) < need.share] = NOWHERE
    if extra.adjust is not None:
        cost += extra.adjust.take(slots)
    return rows, slots, cost


def costs(columns: Columns, eligible: Eligible, need: Need, extra: Extra) -> tuple[Index, I64]:
    """Return the slots where ``need`` is met, RAM included, and the least cost on each."""
    if need.gpus > columns.width or not len(eligible.slots):
        return eligible.slots[:0], np.zeros(0, np.int64)
    if need.spread:
        _, slots, cost = spread_costs(columns, eligible, need, extra)
    elif need.gpus == 0:
        slots = eligible.slots
        cost = np.minimum(columns.ram.take(slots), MOST_RAM).astype(np.int64) - need.ram
        cost[cost < 0] = NOWHERE
    elif need.gpus == 1:
        slots = eligible.slots
        free = columns.free.take(slots, axis=0) - np.int32(need.share)
        free >>= 31
        free |= columns.price.take(slots, axis=0)
        cost = free.view(np.uint32).min(axis=1).astype(np.int64)
        cost[cost >= int(_OVER)] = NOWHERE
        cost -= need.share
    else:
        runs = columns.runs(need.gpus)
        rows = eligible.rows(need.gpus, linked=need.linked)
        slots = columns.row_slot.take(rows)
        least = runs.least.take(rows, axis=0) - np.int32(need.share)
        least >>= 31
        least |= runs.cost.take(rows, axis=0)
        unsigned = least.view(np.uint32)
        cost = (unsigned[:, 0] if unsigned.shape[1] == 1 else unsigned.min(axis=1)).astype(np.int64)
        cost[cost >= int(_OVER)] = NOWHERE
        cost -= need.share * need.gpus
    ram = columns.ram.take(slots) >= need.ram + columns.unified.take(slots) * (need.share * need.gpus)
    good = ram & (cost < NOWHERE >> 1)
    slots, cost = slots[good], cost[good]
    if need.gpus > 1 and len(slots):
        first = np.flatnonzero(np.diff(slots, prepend=-1))
        slots, cost = slots[first], np.minimum.reduceat(cost, first)
    if extra.local is not None and not need.spread:
        near = np.zeros(len(columns.ram), np.bool_)
        near[extra.local] = True
        cost = cost - near.take(slots) * (LOCAL * max(1, need.gpus))
    return slots, cost
