"""What came of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Seconds that requests waited in all: for their place, and again after they had lost it.

    Every request counts, those that were placed at once too. Who waits at the end counts with what it has waited so far,
    which is the least that it could have been.
    """

    median: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Waits:
        """Return the figures of ``seconds``."""
        if not seconds:
            return cls()
        some = sorted(seconds)
        at = {part: some[min(len(some) - 1, int(len(some) * part))] for part in (0.5, 0.95, 0.99)}
        return cls(median=at[0.5], p95=at[0.95], p99=at[0.99], longest=some[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class OfKind:
    """The requests of one kind."""

    arrived: int
    placed: int
    at_once: int
    waits: Waits
    #: Why none of them could be placed even when nothing else ran; empty for those that can be.
    impossible: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole simulation. Shares are from 0 to 1."""

    policy: str
    seed: int
    #: Seconds of made-up time.
    duration: float
    workers: int
    gpus: int
    arrived: int
    #: Placed at some time; those that a failure took their place from and that were placed anew count once.
    placed: int
    #: Placed in the moment of their arrival.
    at_once: int
    #: Waiting at the end; and those of them that had a place before, which count as placed too.
    waiting: int
    waiting_again: int
    #: Instances that failures took from their workers.
    lost: int
    #: Instances that had to leave for one of higher priority.
    preempted: int
    waits: Waits
    #: Of the GPU memory of ready workers, over time.
    utilisation: float
    #: Of the free GPU memory, over time; see :class:`.usage.Meter`.
    fragmentation: float
    decisions: int
    #: Digest of all decisions: equal ones are the same, decision for decision.
    fingerprint: str
    kinds: Mapping[str, OfKind]

    @property
    def placement_rate(self) -> float:
        """Return the share of requests that were placed."""
        return self.placed / self.arrived if self.arrived else 1.0
