"""``/v2/inference-backends``: what the installed plugins can run, and what people describe in rows."""

from __future__ import annotations

import asyncio
import zlib
from functools import partial

from litestar import MediaType, Response, delete, get, post, put
from litestar.params import FromPath, JSONBody

from gpustack.kit.errors import Conflict, InvalidInput, NotFound
from gpustack.schemas import (
    BackendVersion,
    InferenceBackendCreate,
    InferenceBackendList,
    InferenceBackendListItem,
    InferenceBackendPublic,
    InferenceBackendRow,
    InferenceBackendUpdate,
    InferenceBackendYaml,
    Page,
    WorkerPublic,
)
from gpustack.schemas.backend_yaml import read_backend, write_backend
from gpustack.schemas.backends import lacking
from gpustack.server.api.listing import Select, paged, watched
from gpustack.server.auth.caller import Req
from gpustack.server.body import Body, one
from gpustack.server.body import page as page_answer
from gpustack.server.known_backends import breaks, uses_row
from gpustack.server.services import services

_TAGS = ["Inference backends"]
#: Backends without a row are numbered from here, by their names: far above the numbers of rows.
_WITHOUT_ROW = 1 << 40
_SORTED_BY = {"backend_name": lambda each: each.backend_name, "id": lambda each: each.id}


@get("/inference-backends", tags=_TAGS)
async def list_backends(request: Req, selection: Select) -> Response[Page[InferenceBackendPublic]]:
    """List backends of plugins and of rows together, with the engine versions that workers have installed.

    A watch tells of rows; what plugins bring stays the same while the server runs.
    """
    if selection.watch:
        rows = services(request).store.inference_backends
        return await watched(request, "inference-backends", lambda: rows.list(page=-1), {}, selection.since)
    found = await _all(request)
    if selection.search is not None:
        found = [each for each in found if selection.search.lower() in each.backend_name.lower()]
    if selection.sort_by:
        name = selection.sort_by.removeprefix("-")
        if name not in _SORTED_BY:
            raise InvalidInput(f"sort_by: {name!r} is not one of {', '.join(sorted(_SORTED_BY))}")
        found.sort(key=_SORTED_BY[name], reverse=selection.sort_by.startswith("-"))
    return page_answer(paged(found, page=selection.page, per_page=selection.per_page))


@get("/inference-backends/all", tags=_TAGS)
async def list_all_backends(request: Req) -> Response[Page[InferenceBackendPublic]]:
    """List all backends on one page."""
    return page_answer(paged(await _all(request), page=-1, per_page=1))


@get("/inference-backends/list", tags=_TAGS)
async def list_backends_in_short(request: Req) -> Response[InferenceBackendList]:
    """List all backends with the versions that a model may name."""
    return one(InferenceBackendList(items=[_in_short(each) for each in await _all(request)]))


@get("/inference-backends/{backend_id:int}", tags=_TAGS)
async def get_backend(request: Req, backend_id: FromPath[int]) -> Response[InferenceBackendPublic]:
    """Return one backend."""
    return one(await _by_id(request, backend_id))


@get("/inference-backends/{backend_id:int}/yaml", tags=_TAGS, media_type=MediaType.TEXT)
async def get_backend_as_yaml(request: Req, backend_id: FromPath[int]) -> Response[str]:
    """Return what is described of a backend as a YAML file, which can be sent to ``from-yaml`` elsewhere."""
    text = write_backend(await _by_id(request, backend_id))
    return Response(text, media_type="application/yaml; charset=utf-8")


@get("/inference-backends/backend_name/{name:str}", tags=_TAGS)
async def get_backend_by_name(request: Req, name: FromPath[str]) -> Response[InferenceBackendPublic]:
    """Return one backend by its name."""
    for each in await _all(request):
        if each.backend_name == name:
            return one(each)
    raise NotFound(f"there is no backend {name!r}; a plugin may be missing, see /v2/plugins")


@post("/inference-backends", dto=Body[InferenceBackendCreate], tags=_TAGS)
async def create_backend(
    request: Req, data: JSONBody[InferenceBackendCreate]
) -> Response[InferenceBackendPublic]:
    """Describe a backend: a new one, or more versions of one that a plugin brings, by its name."""
    return one(await _created(request, data), status=201)


@post("/inference-backends/from-yaml", dto=Body[InferenceBackendYaml], tags=_TAGS)
async def create_backend_from_yaml(
    request: Req, data: JSONBody[InferenceBackendYaml]
) -> Response[InferenceBackendPublic]:
    """Describe a backend by a YAML file; what is wrong with it is told with its line."""
    wanted = await asyncio.to_thread(read_backend, data.content, "content", _versions(request))
    return one(await _created(request, wanted), status=201)


@put("/inference-backends/{backend_id:int}", dto=Body[InferenceBackendUpdate], tags=_TAGS)
async def update_backend(
    request: Req, backend_id: FromPath[int], data: JSONBody[InferenceBackendUpdate]
) -> Response[InferenceBackendPublic]:
    """Replace the description of a backend. Engines that run go on as they are; the next start is by the new one."""
    return one(await _updated(request, backend_id, data))


@put("/inference-backends/{backend_id:int}/from-yaml", dto=Body[InferenceBackendYaml], tags=_TAGS)
async def update_backend_from_yaml(
    request: Req, backend_id: FromPath[int], data: JSONBody[InferenceBackendYaml]
) -> Response[InferenceBackendPublic]:
    """Replace the description of a backend by that in a YAML file."""
    wanted = await asyncio.to_thread(read_backend, data.content, "content", _versions(request))
    return one(await _updated(request, backend_id, wanted))


@delete("/inference-backends/{backend_id:int}", tags=_TAGS)
async def delete_backend(request: Req, backend_id: FromPath[int]) -> None:
    """Remove what was described of a backend. 409 while models run with it, and for one that a plugin alone brings."""
    if backend_id >= _WITHOUT_ROW:
        found = await _by_id(request, backend_id)
        raise Conflict(
            f"backend {found.backend_name} comes with {found.distribution}; `gpustack plugins remove` removes that"
        )
    await services(request).store.inference_backends.delete(backend_id, partial(uses_row, _versions(request)))


async def _created(request: Req, wanted: InferenceBackendCreate) -> InferenceBackendPublic:
    _check(request, wanted)
    row = await services(request).store.inference_backends.create(wanted)
    return _public(request, row.backend_name, row, [])


async def _updated(request: Req, backend_id: int, wanted: InferenceBackendUpdate) -> InferenceBackendPublic:
    _check(request, wanted)
    rows = services(request).store.inference_backends
    if backend_id >= _WITHOUT_ROW:
        found = await _by_id(request, backend_id)
        if wanted.backend_name != found.backend_name:
            raise InvalidInput(f"a backend's name stays: this one is {found.backend_name!r}")
        row = await rows.create(InferenceBackendCreate.model_validate(wanted.model_dump()))
    else:
        row = await rows.update(backend_id, wanted, partial(breaks, _versions(request)))
    return _public(request, row.backend_name, row, await _workers(request))


def _check(request: Req, wanted: InferenceBackendUpdate) -> None:
    """Raise InvalidInput for what goes together only in a backend that a plugin brings, or the other way round."""
    known, name = _versions(request), wanted.backend_name
    if name in known:
        return
    if alike := [each for each in known if each.casefold() == name.casefold()]:
        raise InvalidInput(f"backend_name: {name!r} is too much like {alike[0]!r}, which a plugin brings")
    if found := lacking(wanted):
        raise InvalidInput(f"{'.'.join(found[0])}: {found[1]}")


async def _all(request: Req) -> list[InferenceBackendPublic]:
    rows = {
        each.backend_name: each
        for each in (await services(request).store.inference_backends.list(page=-1)).items
    }
    workers = await _workers(request)
    names = sorted({*rows, *services(request).catalogue.backends})
    return [_public(request, name, rows.get(name), workers) for name in names]


async def _by_id(request: Req, backend_id: int) -> InferenceBackendPublic:
    for each in await _all(request):
        if each.id == backend_id:
            return each
    raise NotFound(f"there is no backend {backend_id}")


async def _workers(request: Req) -> list[WorkerPublic]:
    return (await services(request).store.workers.list(page=-1)).items


def _versions(request: Req) -> dict[str, str]:
    return {name: each.cls.default_version for name, each in services(request).catalogue.backends.items()}


def _public(
    request: Req, name: str, row: InferenceBackendRow | None, workers: list[WorkerPublic]
) -> InferenceBackendPublic:
    registered = services(request).catalogue.backends.get(name)
    described = {"id": _WITHOUT_ROW + zlib.crc32(name.encode()), "default_version": ""}
    if row is not None:
        described = row.model_dump()
    if registered is not None:
        described |= {
            "default_version": described["default_version"] or registered.cls.default_version,
            "plugin": registered.plugin,
            "distribution": registered.distribution,
            "distribution_version": registered.version,
        }
    else:
        described |= {"plugin": "", "distribution": "", "distribution_version": ""}
    installed = {
        worker.name: worker.installed_versions[name]
        for worker in workers
        if worker.installed_versions.get(name)
    }
    return InferenceBackendPublic.model_validate(
        {
            **described,
            "backend_name": name,
            "is_built_in": registered is not None,
            "installed_versions": installed,
        }
    )


def _in_short(backend: InferenceBackendPublic) -> InferenceBackendListItem:
    installed = (version for versions in backend.installed_versions.values() for version in versions)
    versions = dict.fromkeys([backend.default_version, *backend.version_configs, *sorted(installed)])
    return InferenceBackendListItem(
        backend_name=backend.backend_name,
        is_built_in=backend.is_built_in,
        default_version=backend.default_version,
        default_backend_param=backend.default_backend_param,
        versions=[BackendVersion(version=each) for each in versions if each],
    )


HANDLERS = [
    list_backends,
    list_all_backends,
    list_backends_in_short,
    get_backend,
    get_backend_as_yaml,
    get_backend_by_name,
    create_backend,
    create_backend_from_yaml,
    update_backend,
    update_backend_from_yaml,
    delete_backend,
]
