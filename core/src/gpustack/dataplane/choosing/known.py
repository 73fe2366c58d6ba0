"""What a chooser keeps for one route: its targets with the state of their instances, and how long answers are."""

from __future__ import annotations

from collections.abc import Sequence

from gpustack.dataplane.choosing.holders import bits
from gpustack.dataplane.choosing.instance import Instance
from gpustack.dataplane.choosing.shares import Shares, uneven
from gpustack.plugin.routing import Route, Target

#: With more targets than this, two are drawn and compared instead of all.
ALL = 16
#: Tokens that an answer has until the route has seen some.
_FIRST_GUESS = 256.0
_GUESS_STEP = 0.05


class Member:
    """One target of one route."""

    __slots__ = ("bits", "group", "instance", "key", "slots", "tally", "target", "then", "warm_at")

    def __init__(self, target: Target, instance: Instance, warm_at: float) -> None:
        self.target = target
        self.instance = instance
        self.tally = instance.tally
        self.key = instance.key
        self.bits = bits(instance.key)
        self.slots = target.slots or 1 << 20
        #: When its slow start ends, by the chooser's clock.
        self.warm_at = warm_at
        self.group = (target.model, target.weight)
        #: All members of the route, beginning with the one after this: their order in the next choice.
        self.then: tuple[Member, ...] = ()


class Known:
    """One route. Made anew when the route changes, with what was learned before."""

    __slots__ = (
        "bits",
        "by_key",
        "fresh_until",
        "instances",
        "large",
        "mean",
        "members",
        "output",
        "plain",
        "route",
        "several",
        "shares",
        "tallies",
        "turn",
        "warm_at",
    )  # fmt: skip

    def __init__(self, route: Route, members: Sequence[Member], before: Known | None = None) -> None:
        self.route = route
        self.members = tuple(members)
        self.several = len(self.members) > 1
        self.instances = frozenset(member.instance for member in members)
        self.tallies = tuple(member.tally for member in members)
        #: Of all members: what a prefix has that each of them served.
        self.bits = 0
        for member in members:
            self.bits |= member.bits
        self.by_key = {member.instance.key: member for member in members}
        self.warm_at = max((member.warm_at for member in members), default=0.0)
        #: Whether neither weights nor a weight of 0 have a say.
        self.plain = not uneven(members)
        self.shares: Shares = Shares(before.shares if before else None)
        self.fresh_until = 0.0
        #: Of all loads, for a route too large to add them up each time.
        self.mean = 0
        self.output: float = before.output if before else _FIRST_GUESS
        #: The members, beginning after the one that was chosen last: equals take turns, and it costs nothing.
        self.turn = self.members
        self.large = len(self.members) > ALL
        for at, member in enumerate(self.members, 1):
            member.then = self.members if self.large else self.members[at:] + self.members[:at]

    def answered(self, tokens: int) -> None:
        """Learn from the length of an answer."""
        self.output += (tokens - self.output) * _GUESS_STEP
