"""Who is behind a worker's token. Signs of life are many, so who sent one is remembered for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from gpustack.server.auth.caller import Caller

#: More workers than any server has; tokens that were renewed are forgotten by this, too.
_MOST = 20_000
#: Seconds that a caller counts without a look into the database, where no event ended it before.
_KEPT = 30.0


class KnownWorkers:
    """Callers by the digest of their token."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: dict[str, tuple[Caller, float]] = {}
        self._digests: dict[int, set[str]] = {}

    def note(self, digest: str, caller: Caller) -> None:
        """Remember who has shown a token."""
        if len(self._callers) >= _MOST:
            self._callers.clear()
            self._digests.clear()
        self._callers[digest] = (caller, self._clock())
        self._digests.setdefault(caller.worker_id, set()).add(digest)

    def fresh(self, digest: str) -> Caller | None:
        """Return who showed that token a moment ago; None when the database has to say."""
        found = self._callers.get(digest)
        return found[0] if found is not None and self._clock() - found[1] <= _KEPT else None

    def last(self, digest: str) -> Caller | None:
        """Return who showed that token, however long ago."""
        found = self._callers.get(digest)
        return found[0] if found is not None else None

    def drop(self, digest: str) -> None:
        """Forget a token that nobody has."""
        if (found := self._callers.pop(digest, None)) is not None:
            self._digests.get(found[0].worker_id, set()).discard(digest)

    def changed(self, worker_id: int) -> None:
        """Ask the database about a worker again."""
        for digest in self._digests.get(worker_id, ()):
            caller, _ = self._callers[digest]
            self._callers[digest] = (caller, float("-inf"))

    def all_changed(self) -> None:
        """Ask the database about every worker again: events were missed."""
        for worker_id in list(self._digests):
            self.changed(worker_id)
