"""The worker as a whole: joins the server, keeps saying that it lives, and does what the server wants."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import platform
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

from gpustack import __version__
from gpustack.client import Client
from gpustack.extensions import BundledModels, Catalogue
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound, Unauthenticated
from gpustack.kit.tasks import plain, to_the_end
from gpustack.plugin import Host
from gpustack.schemas import (
    Heartbeat,
    InstanceReport,
    ModelFileReport,
    WorkerRegistered,
    WorkerRegistration,
    WorkerStatus,
)
from gpustack.schemas.workers import ABILITIES, MEMBERS
from gpustack.worker.alone import alone
from gpustack.worker.api import WorkerApi, serve
from gpustack.worker.artifacts import ArtifactInstaller
from gpustack.worker.artifacts.hub import HubFiles
from gpustack.worker.config import WorkerConfig
from gpustack.worker.container_engines import ContainerEngines
from gpustack.worker.desk import Desk
from gpustack.worker.engine_load import EngineLoads
from gpustack.worker.engines import Engines
from gpustack.worker.identity import Identity
from gpustack.worker.instances import Instances, newest
from gpustack.worker.joining import Joining
from gpustack.worker.measuring import GpuMemory, gpu_memory
from gpustack.worker.model_files import Downloads, ModelFiles
from gpustack.worker.news import is_news
from gpustack.worker.outbox import Outbox
from gpustack.worker.ports import PortPool
from gpustack.worker.runners.ending import end_recorded, owners
from gpustack.worker.runners.images import Images
from gpustack.worker.status import Machine
from gpustack.worker.workshop import Workshop

log = logging.getLogger(__name__)

_INSTANCES, _FILES, _ENGINES = "/v2/model-instances", "/v2/model-files", "/v2/worker-engines"
#: Every so many heartbeats one carries what was measured.
_FULL = 3
#: So much of the time between two heartbeats passes before one that failed is sent again.
_AGAIN = 0.25
#: Seconds until a server that knows nothing of engines on workers is asked again.
_UNKNOWN = 600.0
#: What a heartbeat or watch is answered with when the server has forgotten this worker.
_FORGOTTEN = (NotFound, Unauthenticated)
#: What a heartbeat is answered with, too, when the server has become another version: registering tells.
_REFUSED = (*_FORGOTTEN, InvalidInput)


async def run_worker(
    config: WorkerConfig, catalogue: Catalogue, sock: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Be a worker until cancelled; ``sock`` listens on the worker's own port.

    ``on_ready`` is called once: when the server has taken the worker in, its first heartbeat, and both watches
    have told what there is to do. However this ends, all engines end within the configured grace and two seconds,
    unless they are to be kept; then whoever starts next adopts them. Raises GPUStackError with one line when the
    worker cannot go on for a reason that people can mend.
    """
    try:
        async with alone(config.run_dir):
            try:
                await Agent(config, catalogue, sock, on_ready).run()
            finally:
                if not config.keep_engines:
                    await to_the_end(asyncio.to_thread(end_recorded, config.run_dir, grace=config.grace))
    except BaseExceptionGroup as group:
        if (error := plain(group)) is group:
            raise
        raise error from group
    finally:
        sock.close()


class _Forgotten(Exception):
    """The server does not know this worker any more."""


@dataclass(slots=True)
class _Ready:
    """What has to happen before the worker counts as ready; tells once."""

    tell: Callable[[], None]
    missing: set[str] = field(default_factory=lambda: {"heartbeat", "instances", "files"})

    def done(self, what: str) -> None:
        if what in self.missing:
            self.missing.discard(what)
            if not self.missing:
                self.tell()


class Agent:
    """Everything a worker does, on one event loop."""

    def __init__(
        self,
        config: WorkerConfig,
        catalogue: Catalogue,
        sock: socket.socket,
        on_ready: Callable[[], None],
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._socket = sock
        self._ready = _Ready(on_ready)
        self._identity = Identity.load(config.worker_dir)
        self._joining = Joining(config, self._identity)
        #: Set when figures are wanted; ``_due`` when they are not to wait for the next heartbeat.
        self._wanted = asyncio.Event()
        self._due = asyncio.Event()
        self._installed_anew = False
        self._figures: Heartbeat | None = None
        self._containers = ContainerEngines()
        #: What the server was told last of the machine.
        self._told: WorkerStatus | None = None
        self._engines_changed: Callable[[], None] = lambda: None
        self._installer = ArtifactInstaller(
            bin_dir=config.bin_dir,
            data_dir=config.data_dir,
            log_dir=config.log_dir,
            pipx_path=config.pipx_path,
            tools_url=config.tools_url,
            on_installed=self._tell_installed,
        )
        self._client = Client(config.server_url)

    async def run(self) -> None:
        """Work until cancelled."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._client)
            machine = await stack.enter_async_context(self._machine())
            desk = await stack.enter_async_context(
                Desk(
                    self._catalogue,
                    self._host(),
                    self._installer,
                    machine,
                    interface=self._config.interface,
                    images=Images(self._config.container_registry),
                )
            )
            reports: Outbox[InstanceReport] = Outbox(
                "instance",
                self._client.report_instance,
                merge=newest,
            )
            stack.push_async_callback(reports.stop)
            downloads = Downloads(self._client.report_download)
            stack.push_async_callback(downloads.stop)
            bundled = await stack.enter_async_context(BundledModels(self._catalogue, self._host()))
            hub = HubFiles(self._config.hub_config, downloads.put)
            if self._config.hub_token is not None:
                hub.use_token(self._config.hub_token.now)
                self._config.hub_token.listen(hub.use_token)
            shop = Workshop(
                self._config,
                desk,
                PortPool(self._config.service_ports),
                self._client.models.for_instance,
                reports.put,
                hub,
                bundled,
                PortPool(self._config.group_ports, option="--distributed-worker-port-range", host=""),
                self._client.group_orders,
            )
            instances = Instances(shop, reports)
            reports.on_gone = instances.withdraw
            reports.on_refused = instances.refused
            stack.push_async_callback(instances.stop)
            file_reports: Outbox[ModelFileReport] = Outbox("model file", self._client.report_file)
            stack.push_async_callback(file_reports.stop)
            files = ModelFiles(file_reports, hub, bundled)
            stack.push_async_callback(files.stop)
            engines = Engines(self._client, desk, self._installer, unused_seconds=self._config.unused_engines)
            self._engines_changed = engines.changed
            stack.push_async_callback(engines.stop)
            self._loads = EngineLoads(desk, instances.serving)
            api = WorkerApi(self._identity.door_token, instances)
            async with asyncio.TaskGroup() as group:
                group.create_task(serve(api, self._socket), name="worker: own port")
                group.create_task(instances.tend_logs(), name="worker: logs")
                group.create_task(
                    instances.measure(self._gpu_memory, every=self._config.measuring), name="worker: memory"
                )
                group.create_task(self._measure(machine), name="worker: figures")
                group.create_task(self._loads.keep(self._config.heartbeat), name="worker: engines' load")
                group.create_task(engines.tidy(), name="worker: unused engines")
                group.create_task(self._sessions(machine, instances, files, engines), name="worker: sessions")

    async def _sessions(
        self, machine: Machine, instances: Instances, files: ModelFiles, engines: Engines
    ) -> None:
        while True:
            worker = await self._register(machine)
            log.info("worker %s: registered as number %d", worker.name, worker.id)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._beat(), name="worker: heartbeat")
                    group.create_task(self._follow_instances(instances, worker.id), name="worker: instances")
                    group.create_task(self._follow_files(files, worker.id), name="worker: model files")
                    group.create_task(self._follow_engines(engines, worker.id), name="worker: engines")
                    group.create_task(engines.tell(), name="worker: engines here")
            except* _Forgotten:
                log.warning("worker %s: the server has forgotten it; registering again", worker.name)
                await asyncio.sleep(0.5)

    async def _follow_instances(self, instances: Instances, worker_id: int) -> None:
        await self._guarded(
            lambda events, opened: instances.follow(events, worker_id, opened),
            (_INSTANCES, worker_id, "instances"),
        )

    async def _follow_files(self, files: ModelFiles, worker_id: int) -> None:
        await self._guarded(files.follow, (_FILES, worker_id, "files"))

    async def _follow_engines(self, engines: Engines, worker_id: int) -> None:
        """Follow what is asked of engines. A server of before knows nothing of that, and is asked again later."""
        while True:
            try:
                await self._guarded(engines.follow, (_ENGINES, worker_id, "engines"))
            except _Forgotten:  # where the worker itself is meant, the other watches tell
                await asyncio.sleep(_UNKNOWN)

    async def _guarded(
        self, follow: Callable[[Any, Callable[[], None]], Any], watch: tuple[str, int, str]
    ) -> None:
        """Follow a watch for ever; what waiting cannot help within it is tried anew after a while."""
        path, worker_id, what = watch
        wait = Backoff(first=1.0, limit=30.0)

        def opened() -> None:
            wait.reset()
            self._ready.done(what)

        while True:
            try:
                async with aclosing(self._client.watch(path, {"worker_id": worker_id})) as events:
                    await follow(events, opened)
            except _FORGOTTEN as error:
                raise _Forgotten from error
            except GPUStackError as error:
                log.warning("watch %s: %s", path, error)
            await asyncio.sleep(wait.next())

    async def _register(self, machine: Machine) -> WorkerRegistered:
        """Join the server, however long that takes."""
        worker = await self._joining.join(lambda: self._registration(machine))
        self._client.credential, self._client.session = worker.token, worker.session
        return worker

    async def _beat(self) -> None:
        """Send heartbeats: the first at once, every third with figures, and one with them when there is news.

        None waits for the figures: those sent were measured since the heartbeat before, or are older where
        measuring takes longer.
        """
        count = 0
        while True:
            pause = self._config.heartbeat
            full = (count % _FULL == 0 and count > 0) or self._due.is_set()
            self._due.clear()
            beat = self._figures if full and self._figures is not None else Heartbeat()
            beat = beat.model_copy(update={"kv_caches": self._loads.caches})
            try:
                await self._client.heartbeat(beat)
            except _REFUSED as error:
                raise _Forgotten from error
            except GPUStackError as error:
                log.warning("heartbeat: %s", error)
                # The server waits for two before it gives a worker up: a bad link is to lose it no sooner.
                pause *= _AGAIN
            else:
                self._ready.done("heartbeat")
                self._told = beat.status or self._told
            count += 1
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.wait()

    def _gpu_memory(self) -> GpuMemory:
        return gpu_memory(self._figures.status if self._figures is not None else None)

    def _tell_installed(self) -> None:
        self._engines_changed()
        self._installed_anew = True
        self._wanted.set()

    async def _measure(self, machine: Machine) -> None:
        """Take the figures for the next heartbeat that carries some, whenever they are wanted."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            news, self._installed_anew = self._installed_anew, False
            try:
                versions = await asyncio.to_thread(self._installer.installed)
                status = await _measured(machine, self._containers)
            except Exception:  # what plugins say may be anything; the worker goes on with older figures
                log.exception("the machine cannot be measured")
            else:
                self._figures = Heartbeat(status=status, installed_versions=versions)
                news = news or is_news(self._told, status)
            if news:
                self._due.set()

    async def _registration(self, machine: Machine) -> WorkerRegistration:
        """Return what the server is told of this worker, with the present figures."""
        config = self._config
        installed = await asyncio.to_thread(self._installer.installed)
        self._told = status = await _measured(machine, self._containers)
        return WorkerRegistration(
            name=config.name,
            hostname=platform.node(),
            ip=config.advertise_ip,
            port=config.door_port or self._socket.getsockname()[1],
            door_token=self._identity.door_token,
            worker_uuid=self._identity.worker_uuid,
            home=self._identity.home if config.remote else "",
            start=self._identity.start,
            boot=self._identity.boot,
            version=__version__,
            labels={
                "os": platform.system().lower(),
                "arch": platform.machine().lower(),
                "worker-name": config.name,
                **config.labels,
            },
            system_reserved=dict(config.system_reserved),
            status=status,
            catalogue={**self._catalogue.names(), ABILITIES: [MEMBERS]},
            installed_versions=installed,
        )

    def _machine(self) -> Machine:
        config = self._config
        places = (config.data_dir, config.bin_dir, config.log_dir, config.hub_config.cache_dir)
        return Machine(
            self._catalogue,
            self._host(),
            places,
            owners=functools.partial(owners, config.run_dir),
            resources=config.resources,
        )

    def _host(self) -> Host:
        config = self._config
        return Host(
            log=logging.getLogger("gpustack.plugins"), data_dir=config.data_dir, bin_dir=config.bin_dir
        )


async def _measured(machine: Machine, containers: ContainerEngines) -> WorkerStatus:
    """Return the present figures, and whether engines can run in containers here."""
    status, engine = await asyncio.gather(machine.measure(), containers.look())
    return status.model_copy(update={"container_engine": engine})
