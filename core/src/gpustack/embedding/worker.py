"""A worker on another program's event loop, beside its server."""

from __future__ import annotations

import asyncio
import logging
import platform
from typing import Self

from gpustack.app.worker_role import hub_of
from gpustack.embedding.server import EmbeddedServer, Running
from gpustack.kit.errors import GPUStackError
from gpustack.kit.live import Live
from gpustack.kit.net import LOOPBACK, listen
from gpustack.kit.paths import make_dir
from gpustack.worker.agent import run_worker
from gpustack.worker.config import WorkerConfig

log = logging.getLogger(__name__)


class EmbeddedWorker:
    """The worker of a server in the same process: it serves models on this machine. An async context manager.

    It works in the server's data directory and with the server's settings; there is one for each server. Entering starts
    it, and :meth:`ready` tells when it has joined. Leaving ends its engines, within a few seconds, and then itself; leave
    it before the server. What makes it end by itself is logged, and raised by :meth:`ready`.
    """

    def __init__(self, server: EmbeddedServer, *, name: str = "") -> None:
        self._server = server
        self._name = name
        self._joined: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("this worker runs already; there is one for each server")
        running = self._server.running
        config = await asyncio.to_thread(_config, running, self._name)
        joined = self._joined = asyncio.Event()
        self._task = asyncio.create_task(
            run_worker(config, running.catalogue, listen(0, host=LOOPBACK), joined.set),
            name="embedded worker",
        )
        self._task.add_done_callback(_tell)
        return self

    async def __aexit__(self, *error: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def ready(self) -> None:
        """Return once the server has taken it in and it knows what there is to do.

        Raises GPUStackError with one line when it ended before, and RuntimeError when it was not started.
        """
        if self._task is None or self._joined is None:
            raise RuntimeError("this worker does not run: use `async with`")
        waiting = asyncio.create_task(self._joined.wait())
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._task.done():
            if self._task.cancelled():
                raise GPUStackError("the worker was stopped")
            self._task.result()


def _tell(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    known = isinstance(error, GPUStackError)
    log.error("the embedded worker ended: %s", error, exc_info=None if known else error)


def _config(running: Running, name: str) -> WorkerConfig:
    settings = running.settings
    return WorkerConfig(
        server_url=running.url,
        registration_token=running.registration_token,
        name=name or settings.worker_name or platform.node() or "worker",
        advertise_ip=LOOPBACK,
        data_dir=settings.data_dir,
        bin_dir=make_dir(settings.bin_dir, what="bin_dir"),
        log_dir=make_dir(settings.log_dir, what="log_dir"),
        service_ports=tuple(settings.service_port_range.ports()),
        group_ports=tuple(settings.distributed_worker_port_range.ports()),
        ray_ports=settings.ray_node_ports,
        pipx_path=settings.pipx_path,
        tools_url=settings.tools_download_base_url,
        container_registry=settings.system_default_container_registry,
        hub=hub_of(settings),
        hub_token=Live(settings.huggingface_token),
        system_reserved=settings.system_reserved.in_bytes(),
    )
