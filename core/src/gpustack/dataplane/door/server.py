"""The door's connections: what they may take, and how they are refused."""

from __future__ import annotations

from dataclasses import replace

from gpustack.dataplane.hops import DOOR_SAYS, UNREACHED
from gpustack.dataplane.http import HttpServer, Limits, Refusal, Request

#: Wider than the gateway's: what that has let in, and added to, is not refused here.
LIMITS = Limits(
    head_bytes=96 << 10, target_bytes=16 << 10, headers=128, body_bytes=65 << 20, all_bodies_bytes=512 << 20
)


class DoorServer(HttpServer):
    """Serves a :class:`~gpustack.dataplane.door.service.DoorService`."""

    def refusal(self, request: Request | None, status: int, message: str, code: str) -> Refusal:
        """Return an answer of this layer's own, which says that no engine has seen the request."""
        refusal = super().refusal(request, status, message, code)
        if status == 500:
            return refusal  # who knows how far that came
        return replace(refusal, headers=(*refusal.headers, (DOOR_SAYS, UNREACHED)))
