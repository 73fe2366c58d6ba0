"""The door's connections: what they may take, and how they end when another door takes over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from gpustack.dataplane.hops import DOOR_SAYS, UNREACHED
from gpustack.dataplane.http import HttpServer, Limits, Refusal, Request

#: Wider than the gateway's: what that has let in, and added to, is not refused here.
LIMITS = Limits(
    head_bytes=96 << 10, target_bytes=16 << 10, headers=128, body_bytes=65 << 20, all_bodies_bytes=512 << 20
)
#: Seconds without a request after which none is taken to be on its way.
_QUIET = 1.0
#: Seconds between two looks at what is left, at the end.
_LOOK = 0.05


class DoorServer(HttpServer):
    """Serves a :class:`~gpustack.dataplane.door.service.DoorService`."""

    async def drain(self, seconds: float) -> None:
        """End in order: unused connections at once, others with their answer, what is left after ``seconds`` hard.

        Who has just connected, or has just had an answer that could not say yet that it is the last one, may have
        sent a request that has not come here: such a connection is unused only when it has been quiet for a while.
        Listeners are to be closed before.
        """
        self.draining = True
        end = self.clock() + seconds
        while True:
            await _hear_everything()
            now = self.clock()
            self._close_unused(now)
            if not self.connections or now >= end:
                break
            await asyncio.sleep(_LOOK)
        self.close()

    def _close_unused(self, now: float) -> None:
        latest = now - _QUIET + self.limits.keep_alive_seconds
        for connection in list(self.connections):
            # What is unused is due when the time to keep it is over, counted from its last use.
            if connection.idle and connection.due <= latest:
                connection.close()

    def refusal(self, request: Request | None, status: int, message: str, code: str) -> Refusal:
        """Return an answer of this layer's own, which says that no engine has seen the request."""
        refusal = super().refusal(request, status, message, code)
        if status == 500:
            return refusal  # who knows how far that came
        return replace(refusal, headers=(*refusal.headers, (DOOR_SAYS, UNREACHED)))


async def _hear_everything() -> None:
    """Let the loop take what has come already: after a stall it knows of the time first."""
    for _ in range(2):
        await asyncio.sleep(0)
