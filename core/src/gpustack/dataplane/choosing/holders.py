"""Which instances served a prefix lately: a table of fixed size that several processes may share.

One cell of 64 bits for each mark that fits. From the highest: 16 bits tell marks apart that fall on the same cell, 6
tell when the present period began, 16 who served the prefix in the period before, 16 who in the present one, and 10 who
served it last. Writers do not lock: a cell is one aligned word, and a lost update costs a cache miss. A newer mark simply takes the cell of an older one; a prefix has
marks at many depths, so that the loss of one leaves those beside it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

#: Half a megabyte: some ten thousand conversations at a time.
CELLS = 1 << 16
_CELL = CELLS - 1
_TAG = 0xFFFF_0000
_UNTAGGED = (1 << 48) - 1
#: In what ``find`` tells, the key of who served it last.
LAST = 0x3FF
_NOW = 10
_BITS = 16
_ALL_BITS = (1 << _BITS) - 1
_BEFORE = _NOW + _BITS
_STAMP = _BEFORE + _BITS
_STAMPS = 0x3F
#: Seconds of a step of the stamp, and steps of a period. What was served two periods ago may well be evicted.
_STEP = 8.0
_STEPS = 4


class Holders:
    """The table. ``cells`` are :data:`CELLS` unsigned words of 64 bits; left out, they belong to this process alone."""

    __slots__ = ("_cells",)

    def __init__(self, cells: memoryview | None = None) -> None:
        self._cells: memoryview | array[int] = array("Q", bytes(8 * CELLS)) if cells is None else cells

    def find(self, marks: Sequence[int]) -> tuple[int, int]:
        """Return how many of ``marks`` are known as a beginning, and who served the deepest, packed; else 0, 0."""
        cells = self._cells
        depth = len(marks)
        while depth:
            mark = marks[depth - 1]
            cell = cells[mark & _CELL]
            if cell and (cell >> 32) & _TAG == mark & _TAG:
                return depth, cell & _UNTAGGED
            depth -= 1
        return 0, 0

    def put(self, marks: Sequence[int], known: int, found: int, key: int, stamp: int) -> None:
        """Remember who serves this beginning, by its :func:`key`; ``known`` and ``found`` are what ``find`` told.

        Marks deeper than ``known`` are new, and served by this one alone. ``stamp`` is :func:`stamp` of now.
        """
        cells = self._cells
        bit = 1 << key % _BITS
        depth = len(marks)
        if depth > known:
            alone = stamp << _STAMP | bit << _NOW | key
            while depth > known:
                depth -= 1
                mark = marks[depth]
                cells[mark & _CELL] = (mark & _TAG) << 32 | alone
        if known:
            who = found >> _NOW & _ALL_BITS
            before = found >> _BEFORE & _ALL_BITS
            began = found >> _STAMP
            if stamp - began & _STAMPS >= _STEPS:
                before, who, began = who, 0, stamp
            mark = marks[known - 1]
            tag = (mark & _TAG) << 32
            cells[mark & _CELL] = tag | began << _STAMP | before << _BEFORE | (who | bit) << _NOW | key


def key(instance_id: int) -> int:
    """Return what stands for an instance in a cell: never 0. Two ids that are 1,023 apart share one."""
    return instance_id % LAST + 1


def bits(instance_key: int) -> int:
    """Return the bits of an instance among those that served lately, as they lie in a cell. Others may share them."""
    return (1 << _NOW | 1 << _BEFORE) << instance_key % _BITS


def by_all(found: int, everyone: int) -> bool:
    """Tell whether each of those whose :func:`bits` make up ``everyone`` served it lately."""
    return (found | found >> _BITS | found << _BITS) & everyone == everyone


def stamp(now: float) -> int:
    """Return the stamp of a moment, in seconds of one clock for all processes."""
    return int(now / _STEP) & _STAMPS


def settled(found: int, key: int, stamp: int) -> bool:
    """Tell whether another request at the same one would leave the cell as it is."""
    return found & LAST == key and stamp - (found >> _STAMP) & _STAMPS < _STEPS
