"""``/v2/model-files``: what each worker knows of each source."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from gpustack.kit.errors import Conflict, Forbidden, NotFound
from gpustack.schemas import ModelFileDownload, ModelFilePublic, ModelFileReport, Page
from gpustack.server.api.listing import Select, listed
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import Body, one
from gpustack.server.services import services

_WORKER = {"access": Access.WORKER}
_TAGS = ["Model files"]


@get("/model-files", opt=_WORKER, tags=_TAGS)
async def list_files(
    request: Req,
    selection: Select,
    worker_id: FromQuery[int | None] = None,
    source_key: FromQuery[str | None] = None,
) -> Response[Page[ModelFilePublic]]:
    """List model files."""
    return await listed(
        request,
        services(request).store.model_files,
        selection,
        topic="model-files",
        filters={"worker_id": request.user.only_own(worker_id), "source_key": source_key},
    )


@get("/model-files/{file_id:int}", opt=_WORKER, tags=_TAGS)
async def get_file(request: Req, file_id: FromPath[int]) -> Response[ModelFilePublic]:
    """Return one model file."""
    file = await services(request).store.model_files.get(file_id)
    if not request.user.may_see(file.worker_id):
        raise NotFound(f"there is no model file {file_id} on this worker")
    return one(file)


@post(
    "/model-files/{file_id:int}/report", opt=_WORKER, dto=Body[ModelFileReport], status_code=200, tags=_TAGS
)
async def report_file(
    request: Req, file_id: FromPath[int], data: JSONBody[ModelFileReport]
) -> Response[ModelFilePublic]:
    """Take what a worker found; 409 when the file is not its own."""
    store = services(request).store
    file = await store.model_files.get(file_id)
    if request.user.via is not Via.WORKER:
        raise Forbidden("only the worker that has a file reports on it")
    if file.worker_id != request.user.worker_id:
        raise Conflict(f"model file {file_id} is not on worker {request.user.username}")
    return one(await store.model_files.report(file_id, data))


@post("/model-files/downloads", opt=_WORKER, dto=Body[ModelFileDownload], status_code=200, tags=_TAGS)
async def report_download(request: Req, data: JSONBody[ModelFileDownload]) -> Response[ModelFilePublic]:
    """Take how far a worker is with the files of a source; its first report makes the model file."""
    if request.user.via is not Via.WORKER:
        raise Forbidden("only the worker that has a file reports on it")
    return one(await services(request).store.model_files.download(request.user.worker_id, data))


HANDLERS = [list_files, get_file, report_file, report_download]
