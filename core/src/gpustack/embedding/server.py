"""A GPUStack server on another program's event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gpustack import __version__
from gpustack.app.database import DatabaseUnit
from gpustack.app.rundir import RunDir
from gpustack.app.server_role import tunables_of
from gpustack.client import Client
from gpustack.embedding.events import Events
from gpustack.embedding.mounting import Mounted
from gpustack.embedding.options import checked, place
from gpustack.extensions import Catalogue, load_catalogue
from gpustack.kit.live import Live
from gpustack.kit.net import LOOPBACK, listen
from gpustack.kit.paths import make_dir
from gpustack.server.app import App, started, until_ended
from gpustack.server.config import ServerConfig
from gpustack.server.listen import serve
from gpustack.server.services import Services
from gpustack.settings.model import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What there is while a server runs."""

    settings: Settings
    catalogue: Catalogue
    services: Services
    url: str
    credential: str
    registration_token: str
    stack: AsyncExitStack


class EmbeddedServer:
    """The server: the API, the inference paths, the scheduler, the web apps. An async context manager.

    ``data_dir`` is this server's alone. ``database_url`` names a PostgreSQL database; None runs the one that comes with
    GPUStack in ``data_dir``, as a child of this process. ``settings`` are options by their names in the YAML file, those
    of plugins too; values are checked as everywhere, and no variable of the environment is looked at. ``catalogue``
    replaces the installed plugins.

    :attr:`app` can be mounted before the server starts and answers 503 until then, and after its end. Entering raises
    GPUStackError: SettingsError with a line for each option that is wrong, Conflict when the data directory is in use,
    Unavailable when the database cannot be reached. After its end it can be entered again. A ``data_dir`` that is no path
    is told at once, by SettingsError.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str,
        database_url: str | None = None,
        settings: Mapping[str, Any] | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:
        self._data_dir = place(data_dir)
        self._database_url = database_url
        self._given = dict(settings or {})
        self._catalogue = catalogue
        self._mounted = Mounted()
        self._running: Running | None = None

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise RuntimeError("this server runs already; make another one")
        async with AsyncExitStack() as stack:
            running = await self._start(stack)
            self._running = replace(running, stack=stack.pop_all())
        return self

    async def __aexit__(self, *error: object) -> None:
        running, self._running = self.running, None
        await running.stack.aclose()

    # What the program around it uses ---------------------------------------------------------------------

    @property
    def app(self) -> Mounted:
        """The ASGI application to mount."""
        return self._mounted

    @property
    def data_dir(self) -> Path:
        """The absolute path of the data directory."""
        return self._data_dir

    @property
    def url(self) -> str:
        """Where the server answers on this machine alone, whatever mounts it: an address on loopback, another each time."""
        return self.running.url

    def client(self) -> Client:
        """Return a new client with an administrator's rights; ``async with`` closes it."""
        return Client(self.url, self.running.credential)

    def events(self) -> Events:
        """Return what happens to models, instances and workers from this call on."""
        return Events(self.running.services.feed)

    async def broken(self) -> str:
        """Return the name of a part that ended though it must not, once one has; without it the server is to be restarted.

        Waits for ever otherwise. The log says why it ended.
        """
        return await asyncio.shield(self.running.services.broken)

    @property
    def running(self) -> Running:
        """What there is while it runs; RuntimeError before and after. For :mod:`gpustack.embedding` itself."""
        if self._running is None:
            raise RuntimeError("this server does not run: use `async with`")
        return self._running

    # Starting and stopping --------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> Running:
        catalogue = self._catalogue if self._catalogue is not None else load_catalogue(blocked=())
        settings = checked(
            self._given, catalogue.options, data_dir=self._data_dir, database_url=self._database_url
        )
        catalogue = replace(catalogue, given=settings.plugins)
        run_dir = RunDir(settings.data_dir)
        await asyncio.to_thread(run_dir.claim)
        stack.callback(run_dir.release)
        database_url, ended = settings.database_url, None
        if not database_url:
            database_url, ended = await _embedded_database(stack, settings)
        config = _config(settings)
        app, services = await stack.enter_async_context(
            started(config, database_url, catalogue, last_word=False)
        )
        if ended is not None:
            ended.add_done_callback(lambda task: _note_end(task, services))
        url = await _listening(stack, app, services)
        self._mounted.open(app)
        stack.push_async_callback(self._mounted.close, config.drain)
        # First of all: watches and logs are endless answers.
        stack.callback(services.closing.set)
        return Running(
            settings=settings,
            catalogue=catalogue,
            services=services,
            url=url,
            credential=(settings.data_dir / "run" / "cli_token").read_text(encoding="ascii").strip(),
            registration_token=(settings.data_dir / "token").read_text(encoding="ascii").strip(),
            stack=stack,
        )


def _config(settings: Settings) -> ServerConfig:
    return ServerConfig(
        data_dir=settings.data_dir,
        bin_dir=settings.bin_dir,
        version=__version__,
        bootstrap_password=settings.bootstrap_password,
        registration_token=settings.token,
        disable_openapi_docs=settings.disable_openapi_docs,
        replace_after=settings.replace_after,
        tunables=Live(tunables_of(settings)),
    )


async def _embedded_database(stack: AsyncExitStack, settings: Settings) -> tuple[str, asyncio.Task[None]]:
    """Run the PostgreSQL that comes with GPUStack; returns its URL, and the task that keeps it running."""
    make_dir(settings.log_dir, what="log directory")
    unit = DatabaseUnit(
        "", settings.data_dir, settings.log_dir, lambda line: log.warning("%s", line), lambda: None
    )
    keeping = asyncio.create_task(unit.run(), name="embedded server: postgres")
    ready = asyncio.create_task(unit.ready())

    async def stop() -> None:
        keeping.cancel()
        ready.cancel()
        await asyncio.gather(keeping, ready, return_exceptions=True)
        await unit.stop(grace=5.0)

    stack.push_async_callback(stop)
    await asyncio.wait({keeping, ready}, return_when=asyncio.FIRST_COMPLETED)
    if keeping.done():
        keeping.result()
    return await unit.url(), keeping


def _note_end(task: asyncio.Task[None], services: Services) -> None:
    if not task.cancelled():
        log.error("the embedded database ended unexpectedly", exc_info=task.exception())
        if not services.broken.done():
            services.broken.set_result("postgres")


async def _listening(stack: AsyncExitStack, app: App, services: Services) -> str:
    """Answer on a free port of loopback, for this process and its worker; returns the URL."""
    listener = listen(0, host=LOOPBACK)
    stack.callback(listener.close)
    ready = asyncio.Event()
    serving = asyncio.create_task(
        serve(
            until_ended(app),
            [listener],
            drain=services.config.drain,
            closing=services.closing,
            on_ready=ready.set,
        ),
        name="embedded server: loopback",
    )

    async def stop() -> None:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    stack.push_async_callback(stop)
    await ready.wait()
    return f"http://{LOOPBACK}:{listener.getsockname()[1]}"
