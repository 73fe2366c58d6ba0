"""The door as a process: serves the worker's port, and keeps the supervisor's other sockets open while it is gone.

It takes orders over a local socket, one JSON object each: ``claim`` (answered with all sockets; the connection says from
then on that a supervisor lives), ``keep``, ``drop``, ``debug``, and ``retire``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app import doors
from gpustack.app.parent import Parent
from gpustack.dataplane.door import LIMITS, DoorServer, DoorService, Records
from gpustack.dataplane.http import Upstream
from gpustack.kit import local_sockets
from gpustack.kit.local_sockets import Channel, Message
from gpustack.kit.logs import set_debug
from gpustack.kit.tasks import Tasks

log = logging.getLogger(__name__)

#: Seconds that streams may go on when the door is asked to end for good.
STOP_DRAIN = 3.0
#: Seconds that they have at least, however few they are given.
_LEAST = 1.0
#: Connections that wait to be accepted.
_BACKLOG = 4096


async def run(configuration: dict[str, Any], sockets: dict[str, socket.socket], parent: Parent) -> None:
    """Be the door until cancelled, retired, or needed by nobody any more."""
    data_dir = Path(configuration["settings"]["data_dir"])
    await Door(data_dir, sockets, keep_seconds=configuration["keep_seconds"]).run(parent.ready)


class Door:
    """One door. ``sockets`` has ``door`` to accept on, if any; all others are only kept for the next supervisor."""

    def __init__(self, data_dir: Path, sockets: dict[str, socket.socket], *, keep_seconds: float) -> None:
        self._data_dir = data_dir
        self._run_dir = data_dir / "run"
        self._sockets = sockets
        self._keep_seconds = keep_seconds
        self._claim: Channel | None = None
        self._abandoned: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._drain = STOP_DRAIN

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until cancelled or :meth:`retire` d."""
        pid = os.getpid()
        (self._run_dir / "doors").mkdir(mode=0o700, exist_ok=True, parents=True)
        try:
            async with Tasks("door") as tasks:
                if local_sockets.AVAILABLE:
                    control = local_sockets.listen_local(doors.socket_path(self._run_dir, pid))
                    tasks.start("orders", self._take_orders(control, tasks))
                doors.write_own(self._run_dir)
                self._expect_claim()
                await self._serve(on_ready)
        finally:
            doors.remove(self._run_dir, pid)

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        """Accept until it is over, then let the present answers end."""
        listener = self._sockets.get("door")
        if listener is None:
            on_ready()
            await self._over.wait()
            return
        records = Records(self._run_dir / "instances", self._data_dir / "worker" / "door_token")
        upstream = Upstream(LIMITS)
        server = DoorServer(DoorService(records, upstream, self._worker_port), LIMITS)
        upstream.start()
        server.start()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(server.protocol, sock=listener, backlog=_BACKLOG)
        on_ready()
        try:
            await self._over.wait()
        finally:
            # Who connects from now on waits for the next door: the supervisor has the socket too.
            listening.close()
            try:
                await server.drain(max(self._drain, _LEAST))
            finally:
                server.close()
                upstream.close()

    def _worker_port(self) -> int | None:
        """Return the loopback port of the worker's own API; its queue outlives the worker."""
        worker = self._sockets.get("worker")
        return None if worker is None else int(worker.getsockname()[1])

    # Orders ---------------------------------------------------------------------------------------------

    async def _take_orders(self, control: socket.socket, tasks: Tasks) -> None:
        with contextlib.closing(control):
            while True:
                tasks.start("supervisor", self._converse(await local_sockets.accept_local(control)))

    async def _converse(self, channel: Channel) -> None:
        """Follow the orders of one supervisor until it leaves."""
        with channel, contextlib.suppress(OSError):
            try:
                while True:
                    message = await channel.receive_async()
                    await self._obey(message, channel)
            finally:
                if self._claim is channel:
                    self._claim = None
                    self._expect_claim()

    async def _obey(self, message: Message, channel: Channel) -> None:
        order, names = message.content.get("do"), message.content.get("names", [])
        if order == "claim":
            self._claim = channel
            if self._abandoned is not None:
                self._abandoned.cancel()
            kept = list(self._sockets)
            reply = {"ok": True, "names": kept, "version": __version__}
            channel.send(reply, [self._sockets[name].fileno() for name in kept])
            return
        if order == "keep":
            for name, fd in zip(names, message.fds, strict=True):
                self._drop(name)
                self._sockets[name] = socket.socket(fileno=fd)
        elif order == "drop":
            for name in names:
                self._drop(name)
        elif order == "debug":
            set_debug(bool(message.content["on"]))
        elif order == "retire":
            await self._retire(float(message.content["drain"]))
        else:
            channel.send({"ok": False, "error": f"{order!r} is no order that a door knows"})
            return
        channel.send({"ok": True})

    def _drop(self, name: str) -> None:
        if name != "door" and (sock := self._sockets.pop(name, None)) is not None:
            sock.close()

    async def _retire(self, drain: float) -> None:
        """Take no new connections; the process ends once the present ones have, at most ``drain`` seconds later."""
        doors.write_own(self._run_dir, retired=True)
        self._drain = drain
        self._over.set()
        listener = self._sockets.get("door")
        while listener is not None and listener.fileno() != -1:
            await asyncio.sleep(0.01)
        self._forget_the_rest()

    def _expect_claim(self) -> None:
        if self._over.is_set():
            return
        loop = asyncio.get_running_loop()
        self._abandoned = loop.call_later(self._keep_seconds, self._no_one_came)

    def _no_one_came(self) -> None:
        """Close what waits for a supervisor, so that clients are refused rather than kept waiting.

        The engines are served on, if there are any.
        """
        log.warning("no supervisor has come for %.0f s; closing the sockets kept for it", self._keep_seconds)
        self._forget_the_rest()
        if not any((self._run_dir / "instances").glob("*.json")):
            self._over.set()

    def _forget_the_rest(self) -> None:
        for name in list(self._sockets):
            self._drop(name)
