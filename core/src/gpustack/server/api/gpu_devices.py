"""``/v2/gpu-devices``: the GPUs of all workers, from what they report."""

from __future__ import annotations

from litestar import Response, get
from litestar.params import FromPath, FromQuery

from gpustack.kit.errors import NotFound
from gpustack.schemas import GpuDevicePublic, Page, WorkerPublic
from gpustack.server.api.listing import PageNumber, PerPage, Search, paged
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.body import page as page_answer
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
    gpus = [
        gpu
        for gpu in await _all(request)
        if (cluster_id is None or gpu.cluster_id == cluster_id)
        and (worker_id is None or gpu.worker_id == worker_id)
        and (search is None or search.lower() in gpu.name.lower())
    ]
    return page_answer(paged(gpus, page=page, per_page=per_page))


@get("/gpu-devices/{gpu_id:str}", tags=_TAGS)
async def get_gpu(request: Req, gpu_id: FromPath[str]) -> Response[GpuDevicePublic]:
    """Return one GPU; its id is ``worker:type:index``."""
    for gpu in await _all(request):
        if gpu.id == gpu_id:
            return one(gpu)
    raise NotFound(f"there is no GPU {gpu_id}")


async def _all(request: Req) -> list[GpuDevicePublic]:
    workers: Page[WorkerPublic] = await services(request).store.workers.list(page=-1)
    return [gpu for worker in workers.items for gpu in _gpus(worker)]


def _gpus(worker: WorkerPublic) -> list[GpuDevicePublic]:
    return [
        GpuDevicePublic(
            **gpu.model_dump(),
            id=f"{worker.name}:{gpu.type or gpu.vendor}:{gpu.index}",
            worker_id=worker.id,
            worker_name=worker.name,
            worker_ip=worker.ip,
            cluster_id=worker.cluster_id,
            labels=dict(worker.labels),
        )
        for gpu in worker.status.gpu_devices
    ]


HANDLERS = [list_gpus, get_gpu]
