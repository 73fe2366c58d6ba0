"""``/v2/model-sets``: the catalog of models that can be deployed by their name."""

from __future__ import annotations

import logging

from litestar import Response, get
from litestar.params import FromPath

from gpustack.extensions import Described
from gpustack.kit.errors import NotFound
from gpustack.plugin import PluginError
from gpustack.schemas import ModelSetPublic, ModelSpecPublic, Page, Source
from gpustack.server.api.listing import PageNumber, PerPage, Search, paged
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.body import page as page_answer
from gpustack.server.services import services

log = logging.getLogger(__name__)

_TAGS = ["Catalog"]


@get("/model-sets", tags=_TAGS)
async def list_model_sets(
    request: Req, page: PageNumber = 1, per_page: PerPage = 100, search: Search = None
) -> Response[Page[ModelSetPublic]]:
    """List what can be deployed by its name."""
    found = [each for each in await _all(request) if search is None or search.lower() in each.name.lower()]
    return page_answer(paged(found, page=page, per_page=per_page))


@get("/model-sets/{set_id:int}/specs", tags=_TAGS)
async def list_specs(
    request: Req, set_id: FromPath[int], page: PageNumber = 1, per_page: PerPage = 100
) -> Response[Page[ModelSpecPublic]]:
    """List the ways to deploy an entry: its `source` and `bundled_name` go into the body of `POST /v2/models`."""
    entry = await _entry(request, set_id)
    spec = ModelSpecPublic(source=Source.BUNDLED, bundled_name=entry.name, categories=entry.categories)
    return page_answer(paged([spec], page=page, per_page=per_page))


@get("/model-sets/{set_id:int}", tags=_TAGS)
async def get_model_set(request: Req, set_id: FromPath[int]) -> Response[ModelSetPublic]:
    """Return one entry by its number in the list."""
    return one(await _entry(request, set_id))


async def _entry(request: Req, set_id: int) -> ModelSetPublic:
    for each in await _all(request):
        if each.id == set_id:
            return each
    raise NotFound(f"there is no model set {set_id}")


async def _all(request: Req) -> list[ModelSetPublic]:
    bundled = services(request).bundled
    found: list[ModelSetPublic] = []
    for number, name in enumerate(bundled.names, start=1):
        try:
            found.append(_shown(number, await bundled.describe(name)))
        except PluginError as error:  # one broken plugin takes no other's entry away
            log.warning("model %s is left out of the catalog: %s", name, error)
    return found


def _shown(number: int, described: Described) -> ModelSetPublic:
    card = described.card
    size, unit = _size(card.parameters)
    return ModelSetPublic(
        id=number,
        name=described.name,
        title=card.title,
        description=card.summary,
        home=card.home,
        categories=[*card.categories],
        capabilities=[f"context/{card.context_length // 1024}K"] if card.context_length >= 1024 else [],
        licenses=[card.license] if card.license else [],
        size=size,
        size_unit=unit,
    )


def _size(parameters: int) -> tuple[float, str]:
    """Return the count of weights as people say it: 2.1 M, 8 B."""
    if not parameters:
        return 0, ""
    unit, whole = ("B", 1e9) if parameters >= 1e9 else ("M", 1e6)
    return round(parameters / whole, 1), unit


HANDLERS = [list_model_sets, get_model_set, list_specs]
