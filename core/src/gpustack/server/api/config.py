"""``/v2/config``: the settings that the server runs with."""

from __future__ import annotations

from litestar import Response, get

from gpustack.schemas import ConfigPublic
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.services import services


@get("/config", tags=["Config"])
async def get_config(request: Req) -> Response[ConfigPublic]:
    """Return every option of `gpustack start` with its value and where that came from. Secrets are `***`."""
    return one(ConfigPublic.model_validate({"items": services(request).config.tunables.now.effective}))


HANDLERS = [get_config]
