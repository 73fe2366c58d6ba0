"""What admission says, and what it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from gpustack.dataplane.errors import ApiError

Reason = Literal["rate_limit", "queue_full", "queue_timeout", "asleep", "none_running"]

_CODES: dict[Reason, str] = {
    "rate_limit": "rate_limit_exceeded",
    "queue_full": "queue_full",
    "queue_timeout": "queue_timeout",
    "asleep": "model_not_ready",
    "none_running": "model_not_ready",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request gets no turn: 429 for a limit of who asks, 503 for what the model cannot do now."""

    status: int
    reason: Reason
    #: A sentence for who asked.
    message: str
    #: Seconds after which it may be otherwise.
    retry_after: float

    def error(self) -> ApiError:
        """Return the answer."""
        wait = max(1, math.ceil(self.retry_after))
        return ApiError(self.status, self.message, code=_CODES[self.reason], retry_after=wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How long and how much may wait. Times are seconds."""

    #: For a turn at a model that runs.
    longest_wait: float = 60.0
    #: For a model that is asleep to start.
    longest_start: float = 600.0
    #: After a wake-up, before another one is sent for the same model, in case the first was lost.
    wake_again: float = 60.0
    #: Tokens that may wait for one instance where the route does not say.
    queue_tokens: int = 200_000
    #: Turns that a lower priority lets pass while it waits; the next one is its own.
    patience: int = 8
    #: Between two looks at what other processes have running, while something waits.
    look: float = 0.02


class Cancellable(Protocol):
    """A timer that may be called off, such as asyncio's."""

    def cancel(self) -> None:
        """Call it off; without effect afterwards."""


class Timers(Protocol):
    """What calls back later, such as an asyncio loop. Its time is the clock's."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Cancellable:
        """Call ``callback`` at ``when``."""
