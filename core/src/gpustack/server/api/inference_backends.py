"""``/v2/inference-backends``: what the installed plugins can run."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath

from gpustack.kit.errors import NotFound
from gpustack.schemas import InferenceBackendPublic, Page
from gpustack.server.api.listing import PageNumber, PerPage, Search, paged
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.body import page as page_answer
from gpustack.server.services import services

_TAGS = ["Inference backends"]


@get("/inference-backends", tags=_TAGS)
async def list_backends(
    request: Req, page: PageNumber = 1, per_page: PerPage = 100, search: Search = None
) -> Response[Page[InferenceBackendPublic]]:
    """List backends, with the engine versions that workers have installed."""
    found = [
        each for each in await _all(request) if search is None or search.lower() in each.backend_name.lower()
    ]
    return page_answer(paged(found, page=page, per_page=per_page))


@get("/inference-backends/{backend_id:int}", tags=_TAGS)
async def get_backend(request: Req, backend_id: FromPath[int]) -> Response[InferenceBackendPublic]:
    """Return one backend by its number in the list."""
    for each in await _all(request):
        if each.id == backend_id:
            return one(each)
    raise NotFound(f"there is no backend {backend_id}")


@get("/inference-backends/backend_name/{name:str}", tags=_TAGS)
async def get_backend_by_name(request: Req, name: FromPath[str]) -> Response[InferenceBackendPublic]:
    """Return one backend by its name."""
    for each in await _all(request):
        if each.backend_name == name:
            return one(each)
    raise NotFound(f"there is no backend {name!r}; a plugin may be missing, see /v2/plugins")


async def _all(request: Req) -> list[InferenceBackendPublic]:
    parts = services(request)
    workers = (await parts.store.workers.list(page=-1)).items
    return [
        InferenceBackendPublic(
            id=number,
            backend_name=name,
            default_version=registered.cls.default_version,
            plugin=registered.plugin,
            distribution=registered.distribution,
            distribution_version=registered.version,
            installed_versions={
                worker.name: worker.installed_versions[name]
                for worker in workers
                if worker.installed_versions.get(name)
            },
        )
        for number, (name, registered) in enumerate(sorted(parts.catalogue.backends.items()), start=1)
    ]


HANDLERS = [list_backends, get_backend, get_backend_by_name]
