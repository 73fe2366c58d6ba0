"""Members of one instance onto workers: each on one of its own, all of them in one fabric, at the least cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Member(Generic[F]):
    """A worker where one member fits."""

    cost: int
    worker_id: int
    fabric: str
    #: How it fits.
    fit: F


def assign(claims: Sequence[object], candidates: Sequence[Sequence[Member[F]]]) -> list[Member[F]] | None:
    """Return for each of ``claims``, of which equal ones have the same candidates, one of its ``candidates``, or None when not all can be met at once.

    Exact: the sum of costs is the least there is, and of equal sums the workers' ids, in the order of the members, are
    the smallest.
    """
    count = len(claims)
    if count == 1:
        return [min(candidates[0], key=lambda m: (m.cost, m.worker_id))] if candidates[0] else None
    fabrics = sorted({each.fabric for each in candidates[0]})
    best: list[Member[F]] | None = None
    for fabric in fabrics:
        # All but the ``count`` best of a member can be taken by the others, never all of those.
        few = [
            sorted((m for m in some if m.fabric == fabric), key=lambda m: (m.cost, m.worker_id))[:count]
            for some in candidates
        ]
        found = _search(claims, few)
        if found is not None and (best is None or _key(found) < _key(best)):
            best = found
    return best


def _key(members: Sequence[Member[F]]) -> tuple[int, tuple[int, ...]]:
    return sum(each.cost for each in members), tuple(each.worker_id for each in members)


def _search(claims: Sequence[object], few: Sequence[Sequence[Member[F]]]) -> list[Member[F]] | None:
    if any(not some for some in few):
        return None
    if all(claim == claims[0] for claim in claims):
        chosen = sorted(few[0], key=lambda m: m.worker_id)
        return chosen if len(chosen) == len(claims) else None
    least = [0] * (len(claims) + 1)
    for position in reversed(range(len(claims))):
        least[position] = least[position + 1] + few[position][0].cost
    twin = {p: p - 1 for p in range(1, len(claims)) if claims[p] == claims[p - 1]}
    return _Search(few, least, twin).run()


class _Search(Generic[F]):
    """Depth first, cutting off what can no longer be the best."""

    def __init__(
        self, few: Sequence[Sequence[Member[F]]], least: Sequence[int], twin: Mapping[int, int]
    ) -> None:
        self._few = few
        #: What the members from a position on cost at least.
        self._least = least
        #: The equal member before; of two such the first goes to the smaller id.
        self._twin = twin
        self._chosen: list[Member[F]] = []
        self._best: list[Member[F]] | None = None
        self._best_key: tuple[int, tuple[int, ...]] | None = None

    def run(self) -> list[Member[F]] | None:
        self._go(0, 0)
        return self._best

    def _go(self, position: int, cost: int) -> None:
        if position == len(self._few):
            key = _key(self._chosen)
            if self._best_key is None or key < self._best_key:
                self._best, self._best_key = list(self._chosen), key
            return
        taken = {each.worker_id for each in self._chosen}
        above = self._chosen[self._twin[position]].worker_id if position in self._twin else -1
        for member in self._few[position]:
            if (
                self._best_key is not None
                and cost + member.cost + self._least[position + 1] > self._best_key[0]
            ):
                break
            if member.worker_id in taken or member.worker_id < above:
                continue
            self._chosen.append(member)
            self._go(position + 1, cost + member.cost)
            self._chosen.pop()
