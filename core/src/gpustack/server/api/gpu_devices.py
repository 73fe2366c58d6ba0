"""``/v2/gpu-devices``: the GPUs of all workers, from what they report."""

from __future__ import annotations

import json

from litestar import Response, get
from litestar.params import FromPath, FromQuery

from gpustack.db.repositories.fleet import gpus_text
from gpustack.kit.errors import NotFound
from gpustack.schemas import GpuDevicePublic, Page
from gpustack.server.api.listing import PageNumber, PerPage, Search, page_of
from gpustack.server.auth.caller import Req
from gpustack.server.body import one, page_text
from gpustack.server.services import services

_TAGS = ["GPU devices"]


@get("/gpu-devices", tags=_TAGS)
async def list_gpus(
    request: Req,
    page: PageNumber = 1,
    per_page: PerPage = 100,
    search: Search = None,
    cluster_id: FromQuery[int | None] = None,
    worker_id: FromQuery[int | None] = None,
) -> Response[Page[GpuDevicePublic]]:
    """List GPUs."""
    gpus = await services(request).store.workers.gpus(cluster_id=cluster_id, worker_id=worker_id)
    if search is not None:
        gpus = [gpu for gpu in gpus if search.lower() in gpu["name"].lower()]
    return page_text(gpus_text(*page_of(gpus, page=page, per_page=per_page)))


@get("/gpu-devices/{gpu_id:str}", tags=_TAGS)
async def get_gpu(request: Req, gpu_id: FromPath[str]) -> Response[GpuDevicePublic]:
    """Return one GPU; its id is ``worker:type:index``."""
    for gpu in await services(request).store.workers.gpus():
        if gpu["id"] == gpu_id:
            return one(GpuDevicePublic(**{**gpu, "labels": json.loads(bytes(gpu["labels"]))}))
    raise NotFound(f"there is no GPU {gpu_id}")


HANDLERS = [list_gpus, get_gpu]
