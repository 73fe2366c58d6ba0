"""Requests a minute, tokens a minute, requests at a time: what one principal may take.

A bucket holds a minute's allowance and fills steadily, so that the long run is exact and no 60 seconds see more than
twice the limit. Tokens are taken by the estimate when a request comes and put right when it ends: what it took beyond
the estimate is owed, so that somebody may be over by the tokens of the requests that ran at the same time.
"""

from __future__ import annotations

from gpustack.dataplane.admission.buckets import REQUESTS, TOKENS, Buckets
from gpustack.dataplane.admission.values import Refusal
from gpustack.plugin.routing import Limits, Principal

#: Nobody knows when a request of somebody's ends.
_SOON = 1.0


class RateLimits:
    """Keeps limits in ``buckets``. Without shared ones each of ``processes`` holds an equal share, rounded up."""

    def __init__(self, buckets: Buckets, *, processes: int = 1) -> None:
        self._buckets = buckets
        self._processes = 1 if buckets.shared else processes

    def take(self, principal: Principal, tokens: int, now: float) -> Refusal | int:
        """Take a request's place; return the row for the other methods, or the refusal. ``tokens`` is the estimate."""
        limits = principal.limits
        buckets = self._buckets
        row = buckets.row(_key(principal), now)
        if row < 0:
            return row  # far more principals than rows: better to serve than to refuse
        if limits.concurrency is not None and buckets.running(row) >= self._share(limits.concurrency):
            return _refusal(f"has {limits.concurrency} requests running, which is all it may", _SOON)
        if limits.requests_per_minute is not None:
            most = self._share(limits.requests_per_minute)
            if (wait := buckets.wait(row, REQUESTS, 1, most, now) if most else 60.0) > 0:
                return _refusal(f"may send {limits.requests_per_minute} requests a minute", wait)
        if limits.tokens_per_minute is not None:
            most = self._share(limits.tokens_per_minute)
            if (wait := buckets.wait(row, TOKENS, tokens, most, now) if most else 60.0) > 0:
                return _refusal(f"may take {limits.tokens_per_minute} tokens a minute", wait)
            buckets.spend(row, TOKENS, tokens, most, now)
        if limits.requests_per_minute is not None:
            buckets.spend(row, REQUESTS, 1, self._share(limits.requests_per_minute), now)
        buckets.run(row, 1)
        return row

    def end(self, row: int, limits: Limits, estimate: int, used: int, now: float) -> None:
        """Give a request's place back; it took ``used`` tokens."""
        self._buckets.run(row, -1)
        if limits.tokens_per_minute is not None and used != estimate:
            most = self._share(limits.tokens_per_minute)
            self._buckets.spend(row, TOKENS, used - estimate, most, now)

    def undo(self, row: int, limits: Limits, estimate: int, now: float) -> None:
        """Give all back that was taken for a request that was then refused for another reason."""
        self.end(row, limits, estimate, 0, now)
        if limits.requests_per_minute is not None:
            self._buckets.spend(row, REQUESTS, -1, self._share(limits.requests_per_minute), now)

    def _share(self, limit: int) -> int:
        return max(0, -(-limit // self._processes))


def limited(limits: Limits) -> bool:
    """Tell whether there is anything to count."""
    return (
        limits.requests_per_minute is not None
        or limits.tokens_per_minute is not None
        or limits.concurrency is not None
    )


def _key(principal: Principal) -> tuple[str, int | str | None]:
    if principal.key_id is not None:
        return ("key", principal.key_id)
    return ("user", principal.user_id if principal.user_id is not None else principal.username)


def _refusal(what: str, wait: float) -> Refusal:
    return Refusal(
        status=429,
        reason="rate_limit",
        message=f"this key {what}; try again in {max(1, round(wait + 0.5))} s",
        retry_after=wait,
    )
