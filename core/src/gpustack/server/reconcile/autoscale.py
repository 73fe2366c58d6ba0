"""How many instances a model needs, by what is asked of it. Pure: times are given, nothing is waited for.

::

    history = History(now)
    history.note(Demand(outstanding=12), policy, now)
    decision = decide(policy, history, replicas=1, now=now)

More instances come once they have been needed for ``up`` seconds without a break, fewer once they have been enough for
``down`` seconds. What is enough is reckoned with a tenth of slack, so that a load between two numbers stays with one.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from gpustack.schemas import ModelPublic

#: The part of its target that each instance of fewer would have at most.
_SLACK = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one model asks for; times are seconds, 0 as a target is none."""

    least: int
    most: int
    #: Requests per instance, and the part of its KV cache.
    outstanding: float = 4.0
    kv_cache: float = 0.8
    up: float = 5.0
    down: float = 300.0
    idle: float = 600.0

    @classmethod
    def of(cls, model: ModelPublic) -> Policy | None:
        """Return the policy of a model; None when its replicas are fixed."""
        limits = model.scaled_between
        if limits is None:
            return None
        wanted = model.autoscaling
        return cls(
            least=limits[0],
            most=limits[1],
            outstanding=wanted.outstanding,
            kv_cache=wanted.kv_cache / 100,
            up=wanted.up_seconds,
            down=wanted.down_seconds,
            idle=wanted.idle_seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of a model at one moment."""

    #: Requests at its instances, and those that wait for one.
    outstanding: int = 0
    #: The KV caches in use, in caches: two that are half full are 1.0.
    kv_caches: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many instances there are to be, and why; ``again`` is when that may change by time alone."""

    replicas: int
    why: str = ""
    again: float | None = None


class History:
    """What was asked of one model, as far back as it matters."""

    def __init__(self, now: float) -> None:
        #: Of (since, needed, enough); the last one holds now.
        self._steps: deque[tuple[float, int, int]] = deque([(now, 1, 1)])
        self.demand = Demand()
        #: When somebody last asked for it, as far as is known.
        self.active_at = now
        #: Somebody waits for a model that has no instance.
        self.woken = False

    def note(self, demand: Demand, policy: Policy, now: float) -> None:
        """Take in what is asked from now on."""
        if demand.outstanding > 0 or self.demand.outstanding > 0:
            self.active_at = now
        self.demand = demand
        step = (now, _needed(policy, demand, 1.0), _needed(policy, demand, _SLACK))
        if self._steps[-1][1:] == step[1:]:
            return
        if self._steps[-1][0] >= now:
            self._steps.pop()  # it never held
        self._steps.append(step)
        before = now - max(policy.up, policy.down)
        while len(self._steps) > 1 and self._steps[1][0] <= before:
            self._steps.popleft()

    def active(self, now: float) -> None:
        """Note that somebody asks for it, or that it is about to be able to answer."""
        self.active_at = max(self.active_at, now)

    def needed_for(self, seconds: float, now: float) -> int:
        """Return how many instances were needed at every moment of the last ``seconds``."""
        if self._steps[0][0] > now - seconds:
            return 1
        return min(step[1] for step in self._since(now - seconds))

    def enough_for(self, seconds: float, now: float) -> int | None:
        """Return how many instances were enough all the time; None when that is not known so far back."""
        if self._steps[0][0] > now - seconds:
            return None
        return max(step[2] for step in self._since(now - seconds))

    def changes_after(self, seconds: float, now: float) -> float | None:
        """Return when the next step leaves, or begins to fill, a window of ``seconds``; None when none will."""
        for since, _, _ in self._steps:
            if since + seconds > now:
                return since + seconds
        return None

    def _since(self, when: float) -> list[tuple[int | float, int, int]]:
        """Return the steps that held at ``when`` or later."""
        found: list[tuple[int | float, int, int]] = []
        for step in reversed(self._steps):
            found.append(step)
            if step[0] <= when:
                break
        return found


def decide(policy: Policy, history: History, *, replicas: int, now: float) -> Decision:
    """Return how many instances the model is to have, always within its policy's bounds."""
    demand = history.demand
    if replicas == 0:
        if policy.least > 0:
            return Decision(replicas=policy.least, why=f"{policy.least} are to run at least")
        if not (history.woken or demand.outstanding):
            return Decision(replicas=0)
        return Decision(replicas=_within(policy, _needed(policy, demand, 1.0)), why="somebody waits for it")
    if policy.least == 0 and not demand.outstanding:
        if now >= history.active_at + policy.idle:
            return Decision(replicas=0, why=f"nobody asked for it for {policy.idle:g} s")
        idle_at: float | None = history.active_at + policy.idle
    else:
        idle_at = None
    needed = _within(policy, history.needed_for(policy.up, now))
    if needed > replicas:
        return Decision(replicas=needed, why=_why(policy, demand), again=idle_at)
    enough = history.enough_for(policy.down, now)
    if enough is not None and _within(policy, enough) < replicas:
        fewer = _within(policy, enough)
        return Decision(replicas=fewer, why=f"{_why(policy, demand)} for {policy.down:g} s", again=idle_at)
    times = [idle_at, history.changes_after(policy.up, now), history.changes_after(policy.down, now)]
    again = min((each for each in times if each is not None), default=None)
    return Decision(replicas=_within(policy, replicas), again=again)


def _within(policy: Policy, count: int) -> int:
    """Return ``count`` within the bounds; nothing here goes to 0, which being idle alone does."""
    return min(max(count, policy.least, 1), policy.most)


def _needed(policy: Policy, demand: Demand, part: float) -> int:
    """Return the instances that have at most ``part`` of their target each."""
    found = 1
    if policy.outstanding:
        found = max(found, math.ceil(demand.outstanding / (policy.outstanding * part) - 1e-9))
    # Without requests, caches hold what was said before, which anybody may overwrite.
    if policy.kv_cache and demand.outstanding:
        found = max(found, math.ceil(demand.kv_caches / (policy.kv_cache * part) - 1e-9))
    return found


def _why(policy: Policy, demand: Demand) -> str:
    said = []
    if policy.outstanding:
        said.append(
            f"{demand.outstanding} outstanding requests, {policy.outstanding:g} wanted for each instance"
        )
    if policy.kv_cache and demand.kv_caches:
        said.append(f"{demand.kv_caches:.1f} KV caches full, {policy.kv_cache:.0%} wanted of each")
    return "; ".join(said)
