"""Which of a model's instances takes the next request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from gpustack.plugin.routing import Target


class Balancer:
    """Gives each request to the target with the fewest outstanding ones; among equals they take turns.

    Turns are remembered by the instance that was taken last, so a change of the table does not restart them.
    """

    def __init__(self) -> None:
        self._outstanding: Counter[int] = Counter()
        self._turn: dict[int, int] = {}
        self._clock = 0

    def choose(self, targets: Sequence[Target], *, without: Collection[int] = ()) -> Target | None:
        """Return the best target whose instance is not in ``without``; None when none is left."""
        candidates = [target for target in targets if target.instance_id not in without]
        if not candidates:
            return None
        return min(
            candidates,
            key=lambda target: (self._outstanding[target.instance_id], self._turn.get(target.instance_id, 0)),
        )

    @contextmanager
    def lease(self, target: Target) -> Iterator[None]:
        """Count a request on ``target`` while the block runs."""
        instance = target.instance_id
        self._clock += 1
        self._turn[instance] = self._clock
        self._outstanding[instance] += 1
        try:
            yield
        finally:
            self._outstanding[instance] -= 1
            if self._outstanding[instance] <= 0:
                del self._outstanding[instance]

    def forget_all_but(self, instances: Collection[int]) -> None:
        """Drop what is remembered of instances that no longer exist."""
        for instance in [each for each in self._turn if each not in instances]:
            del self._turn[instance]
