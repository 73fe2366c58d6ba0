"""The server put together: store, routing, reconciliation and the two APIs, on sockets that are handed in.

await run_server(config, database_url, catalogue, listeners, on_ready)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, cast

from litestar import Litestar
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig

from gpustack.dataplane import Upstream
from gpustack.dataplane.asgi import Message, Receive, Scope, Send
from gpustack.dataplane.asgi import answer as answer_now
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway import Books, is_inference
from gpustack.dataplane.gateway.asgi import GatewayApp, in_process
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.metrics import Metrics
from gpustack.dataplane.metering.numbers import Slot
from gpustack.db import Store
from gpustack.db.source import database_for
from gpustack.extensions import BundledModels, Catalogue, opened
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.live import Live
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.kit.tasks import Tasks
from gpustack.plugin import GatewayHost, Host, InferenceBackend, PluginError
from gpustack.server import api, docs, metrics, probes
from gpustack.server.auth import routes as auth
from gpustack.server.auth.authenticate import Authenticator, guard
from gpustack.server.auth.passwords import hash_now
from gpustack.server.config import ADMIN, FIRST_LOGIN_FILE, ServerConfig, Tunables, kept_secret
from gpustack.server.cors import Cors
from gpustack.server.decisions import DecisionLog
from gpustack.server.errors import MAX_BODY, answer, body
from gpustack.server.explaining import Explainer
from gpustack.server.fronted import fronted
from gpustack.server.gateway_plugin import GatewayLife
from gpustack.server.gateways import Gateways
from gpustack.server.heartbeats import Heartbeats
from gpustack.server.listen import serve
from gpustack.server.loads import Loads, least_to_tell, tell
from gpustack.server.public import Public
from gpustack.server.reconcile.questions import Backends
from gpustack.server.routing import Routing
from gpustack.server.services import Services
from gpustack.server.tls import Certificates
from gpustack.server.updates import UpdateCheck
from gpustack.server.upgrade import migrate
from gpustack.server.web import WebApps

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Any]

#: The slot of metrics of the server itself, beyond those of gateways.
_SLOT = 4096
#: Records of usage in one transaction.
_RECORDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The sockets of a server: for plain HTTP, and at most one for TLS."""

    plain: tuple[socket.socket, ...]
    tls: socket.socket | None = None

    def with_certificates(self, tunables: Live[Tunables]) -> tuple[socket.socket, ssl.SSLContext] | None:
        """Return the socket for TLS with what to listen with. Raises SettingsError when the files are no usable pair."""
        if self.tls is None or tunables.now.tls is None:
            return None
        certificates = Certificates(*tunables.now.tls)

        def exchange(new: Tunables) -> None:
            if new.tls is not None:
                certificates.use(*new.tls)

        tunables.listen(exchange)
        return self.tls, certificates.context


def create_app(services: Services, inference: GatewayApp, web: WebApps) -> App:
    """Return the ASGI application: ``/v1`` goes to ``inference``, then come the web apps, then the management API."""
    # litestar has names of its own for the same types.
    management = cast("App", create_management_app(services))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await management(scope, receive, send)
        elif is_inference(scope["path"].encode()):
            await inference(scope, receive, send)
        else:
            await (web.at(scope["path"]) or management)(scope, receive, send)

    return app


def sharing(app: App, tunables: Live[Tunables]) -> App:
    """Return ``app`` behind the policy for pages of other origins, as it is at each moment."""
    cors = Cors(app, tunables.now.cors)

    def exchange(new: Tunables) -> None:
        cors.policy = new.cors

    tunables.listen(exchange)
    return cors


def until_ended(app: App) -> App:
    """Return ``app`` with an answer of its own for requests that the end of the server leaves unanswered."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await app(scope, receive, noting_send)
        except asyncio.CancelledError:
            # Only the end of the server cancels a request; without a word of ours it would be a bare 500.
            if begun:
                log.warning("%s: its answer was cut off by the end of the server", scope["path"])
                return  # uvicorn closes the connection of an unfinished answer
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await answer_now(send, 503, headers, _ended(is_inference(scope["path"].encode())))

    return answering


def _ended(inference: bool) -> bytes:
    message = "the server was restarted before it could answer; try again"
    if inference:
        return ApiError(503, message, code="unavailable").body()
    return body(503, message)


def create_management_app(services: Services) -> Litestar:
    """Return the management API: ``/v2``, ``/auth``, the probes and the documentation."""
    handlers: list[Any] = [api.ROUTER, auth.ROUTER, *probes.HANDLERS, *metrics.HANDLERS]
    if not services.config.disable_openapi_docs:
        handlers += docs.HANDLERS
    return Litestar(
        route_handlers=handlers,
        guards=[guard],
        exception_handlers={HTTPException: answer, Exception: answer},
        openapi_config=OpenAPIConfig(
            title="GPUStack", version=services.config.version, path="/_openapi", use_handler_docstrings=True
        ),
        state=State({"services": services, "description": docs.Description()}),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )


def _public(services: Services, app: App) -> Public:
    """Return what serves ``app`` where no gateway stands before it."""
    inference, tunables = services.front.inference, services.config.tunables
    assert inference is not None
    public = Public(inference, app, cors=tunables.now.cors, limits=services.config.limits)

    def exchange(new: Tunables) -> None:
        public.gateway.cors = new.cors

    tunables.listen(exchange)
    return public


async def run_server(
    config: ServerConfig,
    database_url: str,
    catalogue: Catalogue,
    listeners: Listeners,
    on_ready: Callable[[], None],
    *,
    alone: Callable[[], bool] = lambda: False,
) -> None:
    """Run the server until it is cancelled; ``on_ready`` is called once requests are answered.

    Cancelling lets requests in flight go on for ``config.drain`` seconds, ends watches at once, and then raises
    CancelledError as usual. ``alone`` tells that nobody waits for that end: then they have ``config.drain_alone`` more where
    the database is away. Raises GPUStackError with one line when the database cannot be used, and when a part that
    the others cannot do without broke: whoever runs this starts it again.
    """
    async with started(config, database_url, catalogue) as (app, services):
        # What comes from gateways is known to be sound.
        serve_all = partial(serve, app) if config.gateway_mark else _public(services, app).serve
        serving = asyncio.create_task(
            serve_all(
                listeners.plain,
                tls=listeners.with_certificates(config.tunables),
                drain=config.drain,
                closing=services.closing,
                on_ready=on_ready,
                more=lambda: config.drain_alone if alone() and services.store.away else 0.0,
            )
        )
        try:
            either: set[asyncio.Future[Any]] = {serving, services.broken}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if services.broken.done():
            raise GPUStackError(f"{services.broken.result()} ended unexpectedly; the server's log says why")
        serving.result()


@contextlib.asynccontextmanager
async def started(
    config: ServerConfig,
    database_url: str,
    catalogue: Catalogue,
    *,
    reconcile: bool = True,
    last_word: bool = True,
) -> AsyncIterator[tuple[App, Services]]:
    """Run everything but the socket: yields the application and its parts.

    Without its ``last_word`` the application says nothing to requests that are cancelled: whoever else serves it may
    cancel them for reasons of its own.
    """
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def broke(task: str, _error: BaseException) -> None:
        if not broken.done():
            broken.set_result(task)

    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            database_for(database_url, lambda: catalogue, _host(config, "database"))
        )
        store = await Store.open(
            database_url,
            database,
            pool=config.pool,
            wait=config.database_wait,
            patience=config.database_patience,
        )
        await stack.enter_async_context(store)
        await migrate(store, config.data_dir)
        await bootstrap(store, config)
        feed = await stack.enter_async_context(store.feed(broke))
        upstream = await stack.enter_async_context(Upstream())
        routing = Routing(store, feed, built_in=config.built_in_worker)
        await routing.load()
        heartbeats = Heartbeats(store)
        updates = UpdateCheck(
            config.tunables.now.update_check_url,
            config.version,
            kept=config.data_dir / "run" / "update.json",
        )
        config.tunables.listen(lambda new: updates.use(new.update_check_url))
        bundled = await stack.enter_async_context(BundledModels(catalogue, _host(config, "models")))
        backends = await usable_backends(stack, catalogue, config)
        services = Services(
            config=config,
            store=store,
            feed=feed,
            catalogue=catalogue,
            bundled=bundled,
            routing=routing,
            authenticator=await _authenticator(store, routing, config),
            heartbeats=heartbeats,
            upstream=upstream,
            updates=updates,
            explainer=Explainer(store, backends, replace_after=config.replace_after),
            broken=broken,
        )
        tasks = await stack.enter_async_context(Tasks("server", broke))
        tasks.start("routing", routing.run())
        tasks.start("heartbeats", heartbeats.run())
        tasks.start("updates", updates.run())
        tasks.start("worker tokens", services.authenticator.follow(feed))
        loads = Loads(routing.leads, least=least_to_tell(config.gateway))
        if reconcile:
            await _start_reconciling(stack, services, backends, loads)
        books = await _books(stack, tasks, store, config)
        inference = await stack.enter_async_context(
            in_process(books, services.authenticator.principal, wake=lambda route: loads.wake(route.name))
        )
        tasks.start("load", tell(inference.load, loads))
        services.front.inference = inference
        inference.apply(routing.table)
        stack.callback(routing.listen(inference.apply))
        web = await WebApps.opened(stack, catalogue, lambda name: _host(config, name))
        app = create_app(services, inference, web)
        if config.gateway_mark:
            path = make_dir(config.data_dir / "run", what="run directory", mode=0o700) / "gateway.sock"
            keep = services.store.usage.keep
            services.front.data_path = await stack.enter_async_context(Gateways(path, routing, keep, loads))
        if config.gateway.name:
            await _begin_gateway(stack, services)
        whole = sharing(until_ended(app) if last_word else app, config.tunables)
        yield fronted(whole, config.gateway_mark), services


async def _begin_gateway(stack: contextlib.AsyncExitStack, services: Services) -> None:
    """Have the gateway's plugin live beside the server. Raises GPUStackError in one line when it cannot."""
    config, front = services.config, services.front
    name, data_path = config.gateway.name, front.data_path
    if (registered := services.catalogue.gateways.get(name)) is None:
        raise GPUStackError(f"--gateway-mode: the gateway {name!r} is not installed any more")
    host = GatewayHost(
        log=logging.getLogger(f"plugin.{name}"),
        data_dir=config.data_dir,
        bin_dir=config.bin_dir,
        urls=config.urls,
    )
    if data_path is not None:
        host = replace(host, data_path=partial(data_path.health, config.gateway.data_path))
    keep = services.store.usage.keep
    front.life = await GatewayLife.begin(stack, services.catalogue, registered, host, services.routing, keep)
    if data_path is not None:
        data_path.changed = front.life.look


async def _books(stack: contextlib.AsyncExitStack, tasks: Tasks, store: Store, config: ServerConfig) -> Books:
    """Return where what this process itself carries is written down. What ended gateways left is delivered, too."""
    place = config.data_dir / "gateway"
    make_dir(place, what="gateway's directory", mode=0o700)
    journal = await stack.enter_async_context(Journal(place / "usage"))
    metrics = (
        make_dir(config.data_dir / "run" / "gateway", what="gateway's directory", mode=0o700) / "metrics"
    )
    slot = Slot(metrics, _SLOT)
    counted = Metrics(stack.enter_context(slot)) if slot.free else None
    tasks.start("usage", _deliver(journal, store))
    return Books(journal=journal, metrics=counted)


async def _deliver(journal: Journal, store: Store) -> NoReturn:
    """Bring what was metered into the database, however long that is away."""
    while True:
        batch = await journal.next_batch(_RECORDS)
        try:
            await store.usage.keep(batch.records)
        except GPUStackError as error:
            log.warning("usage cannot be written down now and is tried again: %s", error)
            await store.returned()
            await asyncio.sleep(1.0)
            continue
        await journal.acknowledge(batch)


async def _start_reconciling(
    stack: contextlib.AsyncExitStack, services: Services, backends: Backends, loads: Loads
) -> None:
    from gpustack.lifecycle.instance import Deadlines
    from gpustack.server.reconcile import Reconciler

    reconciler = Reconciler(
        services.store,
        services.feed,
        backends,
        deadlines=Deadlines(unreachable=services.config.replace_after),
        on_silence=services.fleet.silent,
    )
    # It is open for longer, so that the last decisions are written down, too.
    services.explainer.log = await stack.enter_async_context(
        DecisionLog(services.store, reconciler.state.fleet)
    )
    await stack.enter_async_context(reconciler)
    services.heartbeats.listeners.append(reconciler.heard)
    loads.told, loads.woken = reconciler.loaded, reconciler.wake
    services.planning.propose = reconciler.propose


async def usable_backends(
    stack: contextlib.AsyncExitStack, catalogue: Catalogue, config: ServerConfig
) -> dict[str, tuple[InferenceBackend[Any], str]]:
    """Return an open object of each backend with its plugin's name; one that cannot be opened is left out."""
    found: dict[str, tuple[InferenceBackend[Any], str]] = {}
    for name, registered in catalogue.backends.items():
        try:
            backend = await opened(stack, catalogue, registered, _host(config, name))
        except PluginError as error:
            log.warning("backend %s of plugin %s is left out: %s", name, registered.plugin, error)
            continue
        found[name] = (backend, registered.plugin)
    return found


def _host(config: ServerConfig, name: str) -> Host:
    return Host(log=logging.getLogger(f"plugin.{name}"), data_dir=config.data_dir, bin_dir=config.bin_dir)


async def bootstrap(store: Store, config: ServerConfig) -> None:
    """Make the first administrator and the default cluster, once in the life of a database.

    A generated password is written to ``initial_admin_password`` in the data directory before it is in force, so
    that no crash in between locks everybody out, and removed when another server on the same database was faster.
    """
    if await _has_admin(store):
        return
    password = config.bootstrap_password or secrets.token_urlsafe(12)
    told = config.data_dir / FIRST_LOGIN_FILE
    if config.bootstrap_password is None:
        write_atomic(told, password + "\n", mode=0o600)
    hashed = await asyncio.to_thread(hash_now, password)
    if await store.bootstrap(hashed, require_password_change=config.bootstrap_password is None):
        log.info("made the user %s and the default cluster", ADMIN)
    elif config.bootstrap_password is None:
        told.unlink(missing_ok=True)


async def _has_admin(store: Store) -> bool:
    try:
        return await store.users.by_name(ADMIN) is not None
    except NotFound:
        return False


async def _authenticator(store: Store, routing: Routing, config: ServerConfig) -> Authenticator:
    admin = await store.users.by_name(ADMIN)
    return Authenticator(
        store,
        routing,
        registration_token=kept_secret(config.data_dir / "token", config.registration_token),
        cli_token=kept_secret(config.data_dir / "run" / "cli_token"),
        admin=await store.users.get(admin.id),
    )
