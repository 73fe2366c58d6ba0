"""``/v2/worker-engines``: the environments of engines on workers, installed and removed from here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from gpustack.kit.errors import Conflict, Forbidden, InvalidInput, NotFound
from gpustack.schemas import ModelPublic, Page, Pagination, WorkerPublic
from gpustack.schemas.worker_engines import (
    EngineName,
    EnginesWanted,
    WorkerEngineCreate,
    WorkerEngineInventory,
    WorkerEnginePublic,
    WorkerEngineReport,
)
from gpustack.server.api.listing import Select, listed
from gpustack.server.api.models import known_backends
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import Body, nothing, one
from gpustack.server.body import page as page_answer
from gpustack.server.known_backends import CUSTOM, Engine
from gpustack.server.services import services

_WORKER = {"access": Access.WORKER}
_TAGS = ["Engines on workers"]


@get("/worker-engines", opt=_WORKER, tags=_TAGS)
async def list_engines(
    request: Req,
    selection: Select,
    worker_id: FromQuery[int | None] = None,
    backend: FromQuery[str | None] = None,
) -> Response[Page[WorkerEnginePublic]]:
    """List the environments of engines: what workers have, and what is asked of them."""
    return await listed(
        request,
        services(request).store.worker_engines,
        selection,
        topic="worker-engines",
        filters={"worker_id": request.user.only_own(worker_id), "backend": backend},
    )


@get("/worker-engines/{engine_id:int}", opt=_WORKER, tags=_TAGS)
async def get_engine(request: Req, engine_id: FromPath[int]) -> Response[WorkerEnginePublic]:
    """Return one environment on one worker."""
    engine = await services(request).store.worker_engines.get(engine_id)
    if not request.user.may_see(engine.worker_id):
        raise NotFound(f"there is no engine {engine_id} on this worker")
    return one(engine)


@post("/worker-engines", dto=Body[WorkerEngineCreate], tags=_TAGS)
async def install_engine(
    request: Req, data: JSONBody[WorkerEngineCreate]
) -> Response[Page[WorkerEnginePublic]]:
    """Have a worker, or all that have the backend, install an engine; again where it failed.

    The answer comes at once; the environments tell how far they are. One that is installed is looked at, not made anew.
    """
    parts = services(request)
    if data.backend == CUSTOM:
        raise InvalidInput("backend custom installs nothing: its models bring a command or an image")
    name = EngineName(
        backend=data.backend, version=data.version or _default_version(request, data), packages=data.packages
    )
    workers = await _workers(request, data)
    engines = await parts.store.worker_engines.request(name, [worker.id for worker in workers])
    pagination = Pagination(page=1, perPage=0, total=len(engines), totalPage=1)
    answer = page_answer(Page[WorkerEnginePublic](items=list(engines), pagination=pagination))
    answer.status_code = 201
    return answer


def _default_version(request: Req, data: WorkerEngineCreate) -> str:
    known = services(request).catalogue.backends
    if data.backend not in known:
        raise InvalidInput(
            f"version is missing: the server has no backend {data.backend!r}, so it knows no default version of it"
        )
    return known[data.backend].cls.default_version


async def _workers(request: Req, data: WorkerEngineCreate) -> list[WorkerPublic]:
    store = services(request).store
    if data.worker_id is not None:
        worker = await store.workers.get(data.worker_id)
        if not _has(worker, data.backend):
            known = ", ".join(sorted(worker.catalogue.get("backends", []))) or "none"
            raise InvalidInput(f"worker {worker.name} has no backend {data.backend!r}; it has: {known}")
        return [worker]
    found = [worker for worker in (await store.workers.list(page=-1)).items if _has(worker, data.backend)]
    if not found:
        raise InvalidInput(f"no worker has a backend {data.backend!r}")
    return found


def _has(worker: WorkerPublic, backend: str) -> bool:
    return backend in worker.catalogue.get("backends", [])


@delete("/worker-engines/{engine_id:int}", status_code=202, tags=_TAGS)
async def remove_engine(request: Req, engine_id: FromPath[int]) -> Response[WorkerEnginePublic]:
    """Have the worker take an environment away; it refuses while an engine runs from it, and says so in the message."""
    answer = one(await services(request).store.worker_engines.remove(engine_id))
    answer.status_code = 202
    return answer


@post(
    "/worker-engines/{engine_id:int}/report",
    opt=_WORKER,
    dto=Body[WorkerEngineReport],
    status_code=200,
    tags=_TAGS,
)
async def report_engine(
    request: Req, engine_id: FromPath[int], data: JSONBody[WorkerEngineReport]
) -> Response[WorkerEnginePublic]:
    """Take how far a worker is with a request; 409 when it is not the last one, or the engine is not its own."""
    _only_workers(request)
    store = services(request).store
    engine = await store.worker_engines.get(engine_id)
    if engine.worker_id != request.user.worker_id:
        raise Conflict(f"engine {engine_id} is not on worker {request.user.username}")
    return one(await store.worker_engines.report(engine_id, data))


@post(
    "/worker-engines/inventory",
    opt=_WORKER,
    dto=Body[WorkerEngineInventory],
    status_code=204,
    tags=_TAGS,
)
async def report_inventory(request: Req, data: JSONBody[WorkerEngineInventory]) -> Response[None]:
    """Take all environments that a worker has."""
    _only_workers(request)
    await services(request).store.worker_engines.inventory(request.user.worker_id, data.engines)
    return nothing()


@get("/worker-engines/wanted", opt=_WORKER, tags=_TAGS)
async def list_wanted(request: Req) -> Response[EnginesWanted]:
    """Return what models run from, or would if they had instances; workers take away what nobody wants or uses."""
    parts = services(request)
    known = await known_backends(request)
    models = (await parts.store.models.list(page=-1)).items
    by_id = {model.id: model for model in models}
    found = {
        wanted for model in models for engine in known.engines(model) for wanted in _wanted(model, engine)
    }
    for instance in (await parts.store.instances.list(page=-1)).items:
        if (model := by_id.get(instance.model_id)) is not None and instance.backend:
            with contextlib.suppress(InvalidInput):  # its backend is gone, and what is left of it ends
                engine = known.engine(model, instance.backend, instance.backend_version)
                found.update(_wanted(model, engine))
    return one(
        EnginesWanted(
            items=[
                EngineName(backend=backend, version=version, packages=list(packages))
                for backend, version, packages in sorted(found)
            ]
        )
    )


def _wanted(model: ModelPublic, engine: Engine) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield what is installed for the model to be run so; nothing for a command or an image of somebody's own."""
    if not engine.installs:
        return
    try:
        packages = model.extra_packages(engine.config.packages)
    except InvalidInput:  # described before packages were looked at; it never gets an environment
        packages = ()
    yield engine.served_by, engine.version, packages


def _only_workers(request: Req) -> None:
    if request.user.via is not Via.WORKER:
        raise Forbidden("only the worker that has an engine reports on it")


HANDLERS = [
    list_engines,
    list_wanted,
    get_engine,
    install_engine,
    remove_engine,
    report_engine,
    report_inventory,
]
