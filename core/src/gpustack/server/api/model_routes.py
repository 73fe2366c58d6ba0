"""``/v2/model-routes`` and ``/v2/model-route-targets``: the names that requests ask for, and who answers them."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from gpustack.schemas import (
    ModelRouteAddTargets,
    ModelRouteCreate,
    ModelRoutePatch,
    ModelRoutePublic,
    ModelRouteTargetPublic,
    ModelRouteTargetUpdate,
    ModelRouteUpdate,
    Page,
)
from gpustack.server.api.listing import PageNumber, PerPage, Select, listed
from gpustack.server.auth.caller import Req
from gpustack.server.body import Body, one
from gpustack.server.body import page as page_answer
from gpustack.server.services import services

_TAGS = ["Model routes"]


@get("/model-routes", tags=_TAGS)
async def list_model_routes(request: Req, selection: Select) -> Response[Page[ModelRoutePublic]]:
    """List routes. A model's own is among them: it has the model's name and, as long as nobody added any, no other target."""
    return await listed(
        request, services(request).store.model_routes, selection, topic="model-routes", filters={}
    )


@get("/model-routes/{route_id:int}", tags=_TAGS)
async def get_model_route(request: Req, route_id: FromPath[int]) -> Response[ModelRoutePublic]:
    """Return one route with its targets."""
    return one(await services(request).store.model_routes.get(route_id))


@post("/model-routes", dto=Body[ModelRouteCreate], tags=_TAGS)
async def create_model_route(request: Req, data: JSONBody[ModelRouteCreate]) -> Response[ModelRoutePublic]:
    """Have requests for a name, and for its aliases, answered by the models that are its targets."""
    return one(await services(request).store.model_routes.create(data), status=201)


@put("/model-routes/{route_id:int}", dto=Body[ModelRouteUpdate], tags=_TAGS)
async def update_model_route(
    request: Req, route_id: FromPath[int], data: JSONBody[ModelRouteUpdate]
) -> Response[ModelRoutePublic]:
    """Replace a route's description, and its targets if any are named. Targets of the same models keep their ids."""
    return one(await services(request).store.model_routes.update(route_id, data))


@patch("/model-routes/{route_id:int}", dto=Body[ModelRoutePatch], tags=_TAGS)
async def patch_model_route(
    request: Req, route_id: FromPath[int], data: JSONBody[ModelRoutePatch]
) -> Response[ModelRoutePublic]:
    """Change the named fields of a route and nothing else; lists are replaced."""
    return one(await services(request).store.model_routes.update(route_id, data))


@delete("/model-routes/{route_id:int}", tags=_TAGS)
async def delete_model_route(request: Req, route_id: FromPath[int]) -> None:
    """Answer requests for a name no longer. The models that were its targets go on."""
    await services(request).store.model_routes.delete(route_id)


@post("/model-routes/{route_id:int}/add-targets", dto=Body[ModelRouteAddTargets], tags=_TAGS, status_code=200)
async def add_targets(
    request: Req, route_id: FromPath[int], data: JSONBody[ModelRouteAddTargets]
) -> Response[ModelRoutePublic]:
    """Have more models answer for a route."""
    return one(await services(request).store.model_routes.add_targets(route_id, data.targets))


@get("/model-route-targets", tags=_TAGS)
async def list_route_targets(
    request: Req,
    page: PageNumber = 1,
    per_page: PerPage = 100,
    route_id: FromQuery[int | None] = None,
    model_id: FromQuery[int | None] = None,
) -> Response[Page[ModelRouteTargetPublic]]:
    """List the targets of one route, of one model, or all. They are watched with their routes."""
    found = await services(request).store.route_targets.list(
        page=page or 1, per_page=per_page, route_id=route_id, model_id=model_id
    )
    return page_answer(found)


@get("/model-route-targets/{target_id:int}", tags=_TAGS)
async def get_route_target(request: Req, target_id: FromPath[int]) -> Response[ModelRouteTargetPublic]:
    """Return one target."""
    return one(await services(request).store.route_targets.get(target_id))


@put("/model-route-targets/{target_id:int}", dto=Body[ModelRouteTargetUpdate], tags=_TAGS)
async def update_route_target(
    request: Req, target_id: FromPath[int], data: JSONBody[ModelRouteTargetUpdate]
) -> Response[ModelRouteTargetPublic]:
    """Change a target's weight, or whether it is the fallback; what is absent stays."""
    return one(await services(request).store.model_routes.update_target(target_id, data))


@post("/model-route-targets/{target_id:int}/set-fallback", tags=_TAGS, status_code=200)
async def set_fallback(
    request: Req,
    target_id: FromPath[int],
    fallback: Annotated[bool, QueryParameter(description="False: a target like others again.")] = True,
) -> Response[ModelRouteTargetPublic]:
    """Ask this target when none of the others can answer, in the place of the fallback before."""
    changes = ModelRouteTargetUpdate(is_fallback=fallback)
    return one(await services(request).store.model_routes.update_target(target_id, changes))


@delete("/model-route-targets/{target_id:int}", tags=_TAGS)
async def delete_route_target(request: Req, target_id: FromPath[int]) -> None:
    """Have a model answer for a route no longer."""
    await services(request).store.model_routes.remove_target(target_id)


HANDLERS = [
    list_model_routes,
    get_model_route,
    create_model_route,
    update_model_route,
    patch_model_route,
    delete_model_route,
    add_targets,
    list_route_targets,
    get_route_target,
    update_route_target,
    set_fallback,
    delete_route_target,
]
