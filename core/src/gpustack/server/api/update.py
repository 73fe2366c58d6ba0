"""``/v2/update``: whether there is a newer GPUStack than the one that answers."""

from __future__ import annotations

from dataclasses import asdict

from litestar import Response, get

from gpustack.schemas import UpdatePublic
from gpustack.server.auth.caller import Access, Req
from gpustack.server.body import one
from gpustack.server.services import services


@get("/update", tags=["Update"], opt={"access": Access.USER})
async def get_update(request: Req) -> Response[UpdatePublic]:
    """Return what the server's last update check found; it asks nobody now."""
    return one(UpdatePublic(**asdict(services(request).updates.latest)))


HANDLERS = [get_update]
