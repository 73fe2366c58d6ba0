"""``/v2/decisions``: what the scheduler decided, to be decided again elsewhere."""

from __future__ import annotations

from litestar import Response, get

from gpustack.kit.errors import InvalidInput
from gpustack.kit.text import shorten
from gpustack.server.auth.caller import Req
from gpustack.server.decisions import exported
from gpustack.server.services import services
from gpustack.server.streams import Streamed

_MEDIA_TYPE = "application/x-ndjson"


@get("/decisions", tags=["Models"], media_type=_MEDIA_TYPE)
async def export_decisions(request: Req) -> Response[str]:
    """Return all recorded decisions as lines of JSON, for `gpustack simulate`.

    Kept are 7 days, 50,000 decisions and 256 MiB at most. There are no pages and no filters.
    """
    if request.query_params:
        name = shorten(next(iter(request.query_params)), 80)
        raise InvalidInput(f"{name!r}: this answers all recorded decisions, and takes no parameters")
    parts = services(request)
    if parts.explainer.log is not None:
        await parts.explainer.log.flush()
    return Streamed(exported(parts.store), media_type=_MEDIA_TYPE)


HANDLERS = [export_decisions]
