"""A gateway that runs as GPUStack runs it, with tables and records of a test's own.

    with running_gateway(AcmeGateway, {"acme_port": 4000}, folder) as gateway:
        gateway.apply([a_route("tiny", engine.port)], {"sk-alice": Principal(user_id=1, username="alice")})
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", ...)

Its plugin lives as beside the server; what it declares is run by the supervisor's own code, so that processes of the data
path are real ones. There is no server and no database: tables come from the test, and records go to it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from gpustack.app.chosen_gateway import declared
from gpustack.app.gateway_units import gateway_units
from gpustack.extensions import Catalogue, Registered
from gpustack.kit.net import LOOPBACK
from gpustack.plugin import Gateway, GatewayHost
from gpustack.plugin.routing import Principal, Route, RoutingDelta, RoutingTable, Target, UsageRecord, digest
from gpustack.server.gateway_plugin import GatewayLife
from gpustack.server.gateways import Gateways
from gpustack.server.loads import Loads
from gpustack.server.routing import Listener
from gpustack.settings.model import Settings

log = logging.getLogger(__name__)

#: Seconds for all of it to start, and to take a table: on a machine that does much else, and not what a contract says.
_READY_WITHIN, _TAKEN_WITHIN = 60.0, 10.0
#: Answers in a row, over connections of their own, after which every process is taken to have a table.
_ROW = 8

_numbers = count(1)


@functools.cache
def tls() -> ssl.SSLContext:
    """Return what clients of a gateway check certificates with; made once, as that takes longer than a request."""
    return ssl.create_default_context()


def a_route(name: str, *ports: int, **more: Any) -> Route:
    """Return a route to engines on ``ports`` of this machine; ``more`` are fields of the route."""
    fields: dict[str, Any] = {"created": 1_700_000_000, "categories": ("llm",), **more}
    return Route(name=name, targets=tuple(a_target(port) for port in ports), **fields)


def a_target(port: int, **more: Any) -> Target:
    """Return an instance on ``port`` of this machine, with a number that no other one has."""
    return Target(instance_id=next(_numbers), host=LOOPBACK, port=port, **more)


class RunningGateway:
    """A gateway that runs. Its methods wait, and are for the thread of the test."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop, tables: _Tables, records: _Records) -> None:
        #: Where it answers, without a slash at the end.
        self.url = url
        self._loop = loop
        self._tables = tables
        self._records = records

    def apply(
        self, routes: Iterable[Route], keys: Mapping[str, Principal], *, closed: Iterable[int] = ()
    ) -> None:
        """Publish a table of these routes and keys, and return once every process serves by it.

        ``closed`` are numbers of keys whose open requests are to end. Raises AssertionError when it is not taken.
        """
        probe = self.publish(routes, keys, closed=closed)
        deadline, row = time.monotonic() + _TAKEN_WITHIN, 0
        while row < _ROW:
            row = row + 1 if self.knows(probe) else 0
            assert time.monotonic() < deadline, (
                f"the gateway does not serve by a table that it was given {_TAKEN_WITHIN:g} s ago: "
                "a key that is in it is refused with 401"
            )

    def publish(
        self, routes: Iterable[Route], keys: Mapping[str, Principal], *, closed: Iterable[int] = ()
    ) -> str:
        """Publish a table and do not wait; return a key that is new in it."""
        probe = f"sk-probe-{next(_numbers)}"
        table = {name: route for route in routes for name in (route.name, *route.aliases)}
        principals = {digest(key): principal for key, principal in keys.items()}
        principals[digest(probe)] = Principal(user_id=None, username="probe")
        done = threading.Event()

        def publish() -> None:
            self._tables.publish(table, principals, frozenset(closed))
            done.set()

        self._loop.call_soon_threadsafe(publish)
        done.wait()
        return probe

    def knows(self, key: str) -> bool:
        """Tell whether the key counts, by a request over a connection of its own."""
        body = {"model": "no such model", "messages": [{"role": "user", "content": "?"}]}
        headers = {"Authorization": f"Bearer {key}"}
        with suppress(httpx.TransportError):
            answer = httpx.post(
                f"{self.url}/v1/chat/completions",
                json=body,
                headers=headers,
                timeout=10,
                verify=tls(),
                trust_env=False,
            )
            return answer.status_code != 401
        return False

    def records(self, route: str, wanted: int, *, within: float = 20.0) -> list[UsageRecord]:
        """Return what was metered for a route, once there are ``wanted`` records or the time is over."""
        deadline = time.monotonic() + within
        while len(found := self._records.of(route)) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


@contextmanager
def running_gateway(
    extension: type[Gateway[Any]], given: Mapping[str, Any], folder: Path
) -> Iterator[RunningGateway]:
    """Run a gateway below ``folder`` until the block ends; ``given`` are its settings, by the names of its options.

    Raises AssertionError, with the ends of the logs, when it does not become ready.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway of a test", daemon=True)
    thread.start()
    stack = AsyncExitStack()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    try:
        yield wait_for(_start(stack, extension, given, folder))
    finally:
        try:
            wait_for(stack.aclose())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _start(
    stack: AsyncExitStack, extension: type[Gateway[Any]], given: Mapping[str, Any], folder: Path
) -> RunningGateway:
    settings = Settings.model_validate({"data_dir": folder / "data", "plugins": dict(given)})
    for place in (settings.data_dir, settings.log_dir, settings.data_dir / "run"):
        place.mkdir(parents=True, exist_ok=True)
    registered: Registered[Gateway[Any]] = Registered(
        cls=extension, plugin="under-test", distribution="under-test", version="0"
    )
    catalogue = Catalogue(gateways={extension.name: registered}, given=given)
    chosen = await declared(registered, catalogue, settings)
    settings = settings.model_copy(update={"gateway": chosen})
    tables, records = _Tables(), _Records()
    said: list[str] = []
    host = GatewayHost(
        log=logging.getLogger(f"test.{extension.name}"), data_dir=settings.data_dir, bin_dir=settings.bin_dir
    )
    data_path: Gateways | None = None
    sockets: dict[str, int] = {}
    if chosen.data_path:
        public = stack.enter_context(_listening())
        sockets["http"] = public.fileno()
        path = settings.data_dir / "run" / "gateway.sock"
        data_path = await stack.enter_async_context(
            Gateways(path, tables, records.keep, Loads(lambda _route: {}))
        )
        host = GatewayHost(
            log=host.log,
            data_dir=host.data_dir,
            bin_dir=host.bin_dir,
            urls=(f"http://{LOOPBACK}:{public.getsockname()[1]}",),
            data_path=partial(data_path.health, chosen.data_path),
        )
    life = await GatewayLife.begin(stack, catalogue, registered, host, tables, records.keep)
    if data_path is not None:
        data_path.changed = life.look
    units = gateway_units(
        settings.model_dump(mode="json"),
        mark="of a test",
        sockets=sockets,
        api_port=lambda: 9,  # nobody is there
        say=said.append,
        changed=lambda: None,
    )
    tasks = [asyncio.create_task(unit.run(), name=unit.name) for unit in units]

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(unit.stop(3.0) for unit in units))
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)
    await _ready(life, [unit.ready() for unit in units], tasks, lambda: _logs(settings.log_dir, said))
    return RunningGateway(life.seen.public_urls[0], asyncio.get_running_loop(), tables, records)


async def _ready(
    life: GatewayLife, waits: Sequence[Any], tasks: Sequence[asyncio.Task[None]], said: Callable[[], str]
) -> None:
    async def serves() -> None:
        while not (life.seen.health.ok and life.seen.public_urls):
            life.look()
            await asyncio.sleep(0.02)

    everything = asyncio.ensure_future(asyncio.gather(*waits, serves()))
    await asyncio.wait([everything, *tasks], timeout=_READY_WITHIN, return_when=asyncio.FIRST_COMPLETED)
    gave_up = [str(task.exception()) for task in tasks if task.done()]
    ready = everything.done()
    everything.cancel()
    await asyncio.gather(everything, return_exceptions=True)
    assert not gave_up, f"{'; '.join(gave_up)}\n{said()}"
    assert ready, (
        f"the gateway does not serve after {_READY_WITHIN:g} s; its health: {life.seen.health.reason}; "
        f"public_urls: {life.seen.public_urls}\n{said()}"
    )


@contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        sock.listen(1024)
        sock.setblocking(False)
        yield sock


def _logs(folder: Path, said: Sequence[str]) -> str:
    logs = [f"--- {each.name}\n{each.read_text(errors='replace')[-4000:]}" for each in folder.glob("*.log")]
    return "\n".join([*said, *logs])


class _Tables:
    """What stands for the server's routing."""

    def __init__(self) -> None:
        self.table = RoutingTable(version=1)
        self._listeners: list[Listener] = []

    def listen(self, callback: Listener) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def publish(
        self, routes: Mapping[str, Route], principals: Mapping[str, Principal], closed: frozenset[int]
    ) -> None:
        old = self.table
        delta = RoutingDelta(
            since=old.version,
            changed=_others(old.routes, routes),
            removed=frozenset(old.routes) - frozenset(routes),
            principals_changed=_others(old.principals, principals),
            principals_removed=frozenset(old.principals) - frozenset(principals),
            closed=closed,
        )
        self.table = RoutingTable(version=old.version + 1, routes=routes, principals=principals)
        for callback in list(self._listeners):
            callback(self.table, delta)


def _others(old: Mapping[str, Any], new: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in new.items() if old.get(name) != value)


class _Records:
    """What stands for the table of usage: each record once, by its id."""

    def __init__(self) -> None:
        self._found: dict[str, UsageRecord] = {}

    async def keep(self, records: Sequence[UsageRecord]) -> None:
        for each in records:
            self._found.setdefault(each.id, each)

    def of(self, route: str) -> list[UsageRecord]:
        return [each for each in list(self._found.values()) if each.route == route]
