"""Exact shares of the requests for targets of different weights, as a canary wants them.

Targets of one model and one weight are a group: among them the load decides. Which group is next is decided by what
each is owed: with each request every group earns its share and the chosen one pays a whole request, so that after any
number of requests none is more than a few away from its share. An affinity may run a small debt and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpustack.dataplane.choosing.known import Member

#: Requests that a group may have had too many because conversations wanted to stay with it.
_DEBT = 4.0


class Shares:
    """What each group of one route is owed, in requests."""

    __slots__ = ("_owed",)

    def __init__(self, before: Shares | None = None) -> None:
        self._owed: dict[tuple[str, int], float] = dict(before._owed) if before else {}

    def narrow(self, members: Sequence[Member], favourites: Sequence[Member]) -> list[Member]:
        """Return those of ``members`` whose turn it is, and charge them. ``favourites`` go first while they may.

        Groups that are not among the members neither earn nor pay: what they missed is not made up later.
        """
        groups: dict[tuple[str, int], list[Member]] = {}
        for member in members:
            groups.setdefault(member.group, []).append(member)
        total = sum(member.target.weight for member in members)
        if len(groups) == 1 or not total:
            return list(members)
        owed = self._owed
        for group, found in groups.items():
            owed[group] = owed.get(group, 0.0) + len(found) * group[1] / total
        wanted = [member.group for member in favourites if member.group in groups]
        allowed = (group for group in wanted if owed[group] - 1.0 > -_DEBT)
        chosen = next(allowed, None) or max(groups, key=owed.__getitem__)
        owed[chosen] -= 1.0
        return groups[chosen]


def uneven(members: Sequence[Member]) -> bool:
    """Tell whether the members are of more than one group."""
    return len({member.group for member in members}) > 1


def with_weight(members: Sequence[Member]) -> list[Member]:
    """Leave out who has no weight, unless nobody has any."""
    return [member for member in members if member.target.weight > 0] or list(members)
