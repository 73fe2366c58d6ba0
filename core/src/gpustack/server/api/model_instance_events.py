"""``/v2/model-instance-events``: what happened to instances, also to those that are gone."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath, FromQuery

from gpustack.kit.errors import InvalidInput
from gpustack.schemas import InstanceEventPublic, Page
from gpustack.server.api.listing import Select, listed, watched
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.services import services

_TAGS = ["Model instances"]
#: What a watch begins with: history has no end, and who follows it wants the newest.
_REPLAYED = 1000


@get("/model-instance-events", tags=_TAGS)
async def list_instance_events(
    request: Req,
    selection: Select,
    model_id: FromQuery[int | None] = None,
    model_name: FromQuery[str | None] = None,
    instance_id: FromQuery[int | None] = None,
    instance_name: FromQuery[str | None] = None,
) -> Response[Page[InstanceEventPublic]]:
    """List what happened to instances, the newest first; a watch begins with the last 1000 in their order.

    A model's events stay readable by its name when the model is gone. Kept are 30 days, and 100,000 events at most.
    """
    history = services(request).store.history
    filters = {
        "model_id": model_id,
        "model_name": model_name,
        "instance_id": instance_id,
        "instance_name": instance_name,
    }
    if not selection.watch:
        if selection.page == -1:
            raise InvalidInput(
                "query parameter page: history is too long for one page; pages are counted from 1"
            )
        return await listed(request, history, selection, topic=history.topic, filters=filters)
    if selection.search:
        raise InvalidInput("query parameter search: a watch shows everything; search in what it sends")
    wanted = {name: value for name, value in filters.items() if value is not None}
    return await watched(
        request, history.topic, lambda: history.newest(_REPLAYED, **wanted), wanted, selection.since
    )


@get("/model-instance-events/{event_id:int}", tags=_TAGS)
async def get_instance_event(request: Req, event_id: FromPath[int]) -> Response[InstanceEventPublic]:
    """Return one event."""
    return one(await services(request).store.history.get(event_id))


HANDLERS = [list_instance_events, get_instance_event]
