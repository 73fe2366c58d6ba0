"""Whether a request goes where its beginning is cached, or where there is least to do.

The one that served the prefix last is asked while it has at most 1.25 times the mean to do; else another one that
served it lately, and else the one with the least to do. A difference in load that is smaller than what the cache
saves is no reason to leave. A prefix that all have is a reason for none.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpustack.dataplane.choosing.holders import LAST, Holders, by_all, settled, stamp
from gpustack.dataplane.choosing.known import Known, Member
from gpustack.dataplane.choosing.outstanding import REQUESTS, TOKEN
from gpustack.dataplane.choosing.prefix import BYTES_PER_TOKEN, DEPTHS
from gpustack.dataplane.choosing.values import Hints

_BOUND = 1.25
_BUSY = 1 << 63
_SAVED = tuple(depth // BYTES_PER_TOKEN for depth in DEPTHS)


class Affinity:
    """Follows prefixes and sessions by what ``holders`` remembers."""

    __slots__ = ("_holders",)

    def __init__(self, holders: Holders) -> None:
        self._holders = holders

    def choose(
        self,
        known: Known,
        hints: Hints,
        least: Member,
        low: int,
        mean: int,
        among: Sequence[Member],
        now: float,
    ) -> tuple[Member, int]:
        """Return who takes the request, and how many tokens of its prompt are cached there.

        ``least`` has the least to do of ``among``, which is ``low``; ``mean`` is what they have to do on average.
        """
        marks, tokens = hints.marks, hints.tokens
        if hints.session:
            marks = (*marks, hints.session)
        depth, found = self._holders.find(marks)
        chosen, saved = least, 0
        if found:
            # A session is followed for its own sake, wherever else it was.
            session = depth > len(hints.marks)
            gain = tokens if session or _SAVED[depth - 1] > tokens else _SAVED[depth - 1]
            if among is known.members and not session and by_all(found, known.bits):
                saved = gain
            else:
                member = known.by_key.get(found & LAST)
                load = _BUSY if member is None else member.tally.total
                if (
                    member is not None
                    and load <= mean * _BOUND
                    and load & REQUESTS < member.slots
                    and (among is known.members or member in among)
                ):
                    chosen, saved = member, gain
                else:
                    extra = gain - self._everywhere(known, marks[: depth - 1])
                    bound = max(mean * _BOUND, low + extra * TOKEN)
                    other = _holder(among, found, bound, full=low & REQUESTS >= least.slots)
                    if other is not None:
                        chosen, saved = other, gain
        key = chosen.key
        moment = stamp(now)
        if depth != len(marks) or not settled(found, key, moment):
            self._holders.put(marks, depth, found, key, moment)
        return chosen, saved

    def holding(self, known: Known, hints: Hints) -> list[Member]:
        """Return who served the prefix or the session last, if it is known and still there."""
        marks = (*hints.marks, hints.session) if hints.session else hints.marks
        member = known.by_key.get(self._holders.find(marks)[1] & LAST)
        return [] if member is None else [member]

    def _everywhere(self, known: Known, marks: Sequence[int]) -> int:
        """Return how many tokens of the beginning all have: going to another one does not lose them."""
        while marks:
            depth, found = self._holders.find(marks)
            if depth and by_all(found, known.bits):
                return _SAVED[depth - 1]
            marks = marks[: max(depth - 1, 0)]
        return 0


def _holder(among: Sequence[Member], found: int, bound: float, *, full: bool) -> Member | None:
    """Return who of those that served it lately has the least to do, and not more than ``bound``."""
    best = None
    for member in among:
        load = member.tally.total
        if member.bits & found and load <= bound and (full or load & REQUESTS < member.slots):
            best, bound = member, load
    return best
