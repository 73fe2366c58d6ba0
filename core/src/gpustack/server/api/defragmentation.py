"""``/v2/defragmentation``: moves of instances that would make room."""

from __future__ import annotations

from litestar import Response, get

from gpustack.schemas import Defragmentation
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.services import services


@get("/defragmentation", tags=["Defragmentation"])
async def get_defragmentation(request: Req) -> Response[Defragmentation]:
    """Propose moves that give room to instances that wait, and that free whole GPUs; nothing is moved."""
    return one(await services(request).planning.propose())


HANDLERS = [get_defragmentation]
