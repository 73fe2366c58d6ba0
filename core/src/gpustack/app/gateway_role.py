"""The gateway's composition: the data path on the public ports, with a copy of the routing table of its own.

It serves while the server, the database and the worker are gone: by the table that it has, or has on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app import doors
from gpustack.app.parent import Parent
from gpustack.app.sharing import cors_of, limits_of, tls_of
from gpustack.dataplane.admission import Admission, Buckets
from gpustack.dataplane.choosing import Chooser, SharedOutstanding
from gpustack.dataplane.gateway import Books, Gateway, Parts
from gpustack.dataplane.gateway.backstage import ServerSide, refusal_body
from gpustack.dataplane.http import HttpServer, Upstream
from gpustack.dataplane.metering.access_log import AccessLog
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.metrics import Metrics
from gpustack.dataplane.metering.numbers import Slot
from gpustack.dataplane.table.copy import TableCopy, TableFile
from gpustack.dataplane.table.link import Link
from gpustack.dataplane.table.load import LoadTeller
from gpustack.kit import local_sockets
from gpustack.kit.local_sockets import Channel
from gpustack.kit.net import LOOPBACK
from gpustack.kit.paths import make_dir
from gpustack.kit.process import RETIRE, give_large_buffers_back
from gpustack.kit.tasks import Tasks
from gpustack.plugin.routing import Route
from gpustack.server.tls import Certificates

log = logging.getLogger(__name__)

#: Seconds that requests in flight may go on when the gateway is to end.
DRAIN = 3.0
#: The same for one that another has taken the place of.
RETIRED_DRAIN = 600.0
#: Retired gateways that may be there at the same time, and count.
_TURNS = 16
#: Objects that may come to be before the collector looks at the young ones.
_YOUNG = 10_000
#: Connections that wait to be accepted.
_BACKLOG = 4096
#: Seconds between two looks at what is only counted.
_GAUGES = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway has what. ``seat`` is its number among ``seats`` processes."""

    data_dir: Path
    log_dir: Path
    seat: int
    seats: int
    #: Of this life of the supervisor: what processes share must not be taken over by the next ones.
    life: str

    @property
    def run(self) -> Path:
        """What belongs to one life of the machine."""
        return self.data_dir / "run" / "gateway"

    @property
    def kept(self) -> Path:
        """What has to survive."""
        return self.data_dir / "gateway"


async def run(configuration: dict[str, Any], sockets: dict[str, socket.socket], parent: Parent) -> None:
    """Be a gateway process until cancelled, or retired and without requests."""
    give_large_buffers_back()
    settings = configuration["settings"]
    place = Place(
        Path(settings["data_dir"]),
        Path(settings["log_dir"]),
        configuration["seat"],
        configuration["seats"],
        configuration["life"],
    )
    for folder in (place.run, place.kept, place.data_dir / "run" / doors.GATEWAYS):
        make_dir(folder, what="gateway's directory", mode=0o700)
    loop = asyncio.get_running_loop()
    retired = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # where there are no such signals, the supervisor ends us
        loop.add_signal_handler(RETIRE, retired.set)
    doors.write_own(place.data_dir / "run", kind=doors.GATEWAYS)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(doors.remove, place.data_dir / "run", os.getpid(), doors.GATEWAYS)
        access = stack.enter_context(AccessLog(place.log_dir / "access.log"))
        metrics = Metrics(stack.enter_context(_slot(place)))
        journal = await stack.enter_async_context(Journal(place.kept / "usage"))
        upstream = Upstream()
        stack.callback(upstream.close)
        link: Link | None = None

        def wake(route: Route) -> None:
            if link is not None:
                link.wake(route.name)

        shared, buckets = _shared(place, stack)
        admission = Admission(loop.time, loop, buckets, wake=wake)
        stack.callback(admission.close)
        backstage = ServerSide(
            upstream, (LOOPBACK, configuration["api_port"]), configuration["mark"].encode()
        )
        chooser = Chooser(time.monotonic, shared=shared)
        gateway = Gateway(
            Parts(
                upstream=upstream,
                chooser=chooser,
                admission=admission,
                books=Books(journal=journal, access_log=access, metrics=metrics),
                backstage=backstage,
                cors=cors_of(settings),
                behind=lambda: link is not None and link.behind,
            )
        )
        server = HttpServer(gateway, limits_of(settings), error_body=refusal_body)
        upstream.start()
        server.start()
        serving, told = asyncio.Event(), asyncio.Event()
        copy = TableCopy(gateway.apply, gateway.close_keys)
        file = TableFile(place.kept / "table", copy)
        if await asyncio.to_thread(file.load):
            serving.set()

        def first() -> None:
            # A hundred thousand keys live long: the collector need not look at them again, which would stop everything.
            gc.collect()
            gc.freeze()
            # Nothing that a request leaves behind is a circle: looking after every 700 objects finds none.
            gc.set_threshold(_YOUNG, 10, 10)
            serving.set()
            told.set()

        link = Link(
            place.data_dir / "run" / "gateway.sock",
            copy,
            journal,
            release=__version__,
            first=first,
            load=LoadTeller(admission, chooser),
        )
        tasks = await stack.enter_async_context(Tasks("gateway"))
        tasks.start("link", link.run())
        if local_sockets.AVAILABLE:
            path = doors.socket_path(place.data_dir / "run", os.getpid(), doors.GATEWAYS)
            tasks.start("sockets", _lend(local_sockets.listen_local(path), sockets, tasks))
        if place.seat == 0:
            tasks.start("table on disk", file.keep())
        tasks.start("gauges", _gauge(metrics, admission, server, upstream, chooser, journal))
        certificates = _certificates(settings)

        def reload(new: dict[str, Any]) -> None:
            gateway.cors = cors_of(new["settings"])
            files = tls_of(new["settings"])
            if certificates is not None and files is not None:
                certificates.use(*files)

        parent.on_reload = reload
        # Without a table, everybody's key would be wrong: who comes before it waits in the sockets' queues.
        await _either(serving, retired)
        tasks.start("ready", _ready(told, parent))
        await _serve(server, sockets, certificates, retired)


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    """Return when one of both has come."""
    events = [asyncio.create_task(each.wait()) for each in (one, other)]
    try:
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for event in events:
            event.cancel()


def _shared(
    place: Place, stack: contextlib.AsyncExitStack
) -> tuple[SharedOutstanding | None, Buckets | None]:
    """Return what several processes count together; one counts alone."""
    if place.seat == 0:
        # Those who still use what an earlier life has left have it open.
        for pattern in ("outstanding-*", "limits-*"):
            for left in place.run.glob(pattern):
                if not left.name.endswith(place.life):
                    left.unlink(missing_ok=True)
    if place.seats == 1:
        return None, None
    outstanding = SharedOutstanding(
        place.run / f"outstanding-{place.life}", seat=place.seat, seats=place.seats
    )
    stack.callback(outstanding.close)
    buckets = Buckets.mapped(place.run / f"limits-{place.life}", seat=place.seat, seats=place.seats)
    return outstanding, buckets


def _certificates(settings: dict[str, Any]) -> Certificates | None:
    files = tls_of(settings)
    return Certificates(*files) if files is not None else None


async def _lend(control: socket.socket, sockets: dict[str, socket.socket], tasks: Tasks) -> None:
    """Give the listening sockets to whichever supervisor asks: it may find nobody else who has them."""
    with contextlib.closing(control):
        while True:
            tasks.start("supervisor", _answer(await local_sockets.accept_local(control), sockets))


async def _answer(channel: Channel, sockets: dict[str, socket.socket]) -> None:
    with channel, contextlib.suppress(OSError):
        while True:
            order = (await channel.receive_async()).content.get("do")
            if order == "claim":
                reply = {"ok": True, "names": list(sockets), "version": __version__}
                channel.send(reply, [each.fileno() for each in sockets.values()])
            else:
                channel.send({"ok": False, "error": f"{order!r} is no order that a gateway knows"})


async def _ready(told: asyncio.Event, parent: Parent) -> None:
    """Say so once the server has told what there is: until then a key made lately may not be known here."""
    await told.wait()
    parent.ready()


async def _serve(
    server: HttpServer,
    sockets: dict[str, socket.socket],
    certificates: Certificates | None,
    retired: asyncio.Event,
) -> None:
    """Accept until cancelled or retired; then let the present answers end."""
    loop = asyncio.get_running_loop()
    listeners = [await loop.create_server(server.protocol, sock=sockets["http"], backlog=_BACKLOG)]
    if "https" in sockets and certificates is not None:
        listeners.append(
            await loop.create_server(
                server.protocol, sock=sockets["https"], ssl=certificates.context, backlog=_BACKLOG
            )
        )
    log.info("gateway %d serves", os.getpid())
    try:
        await retired.wait()
        log.info("gateway %d has retired", os.getpid())
        # The descriptors are shared: others accept on them already.
        _close(listeners)
        await server.drain(RETIRED_DRAIN)
    except asyncio.CancelledError:
        _close(listeners)
        await server.drain(DRAIN)
        raise


def _close(listeners: list[asyncio.Server]) -> None:
    for listener in listeners:
        listener.close()


def _slot(place: Place) -> Slot:
    """Return the first free slot: one that is retired counts on in its own."""
    folder = place.run / "metrics"
    for turn in range(_TURNS):
        slot = Slot(folder, place.seat + turn * place.seats)
        if slot.free:
            return slot
    return Slot(folder, place.seat + _TURNS * place.seats)


async def _gauge(
    metrics: Metrics,
    admission: Admission,
    server: HttpServer,
    upstream: Upstream,
    chooser: Chooser,
    journal: Journal,
) -> None:
    """Keep the figures that are states rather than events."""
    made = dict.fromkeys(("client", "engine", "in", "out", "engine in"), 0)
    lost = ejected = 0
    told: dict[str, tuple[int, int, int]] = {}
    while True:
        await asyncio.sleep(_GAUGES)
        before, told = told, {}
        for name, running, waiting, tokens in admission.survey():
            told[name] = (running, waiting, tokens)
            if before.get(name) == told[name]:
                continue  # as most of many models
            metrics.running.of(name).set(running)
            metrics.queue_length.of(name).set(waiting)
            metrics.queue_tokens.of(name).set(tokens)
        metrics.connections.of("client").set(len(server.connections))
        metrics.connections.of("engine").set(len(upstream.active))
        for key, series, now in (
            ("client", metrics.connections_made.of("client"), server.accepted),
            ("engine", metrics.connections_made.of("engine"), upstream.connects),
            ("in", metrics.bytes.of("client", "in"), server.bytes_in),
            ("out", metrics.bytes.of("client", "out"), server.bytes_out),
            ("engine in", metrics.bytes.of("engine", "in"), upstream.bytes_in),
        ):
            series.add(now - made[key])
            made[key] = now
        metrics.journal_lost.of().add(journal.dropped - lost)
        metrics.ejections.of("all").add(chooser.ejections - ejected)
        lost, ejected = journal.dropped, chooser.ejections
