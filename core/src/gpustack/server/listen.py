"""uvicorn, run by us: on a socket that is handed in, without its signals, its lifespan and its access log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

log = logging.getLogger(__name__)

_KEEP_ALIVE = 75
#: Seconds for requests on connections that were accepted in the moment before the end.
_ON_THEIR_WAY = 0.1


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process's own supervisor."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def serve(
    app: Callable[..., Any],
    listener: socket.socket,
    *,
    drain: float | Callable[[], float],
    closing: asyncio.Event,
    on_ready: Callable[[], None],
    debug: bool = False,
) -> None:
    """Answer requests on ``listener`` until cancelled.

    Then ``closing`` is set, idle connections close, and what is in flight has ``drain`` seconds; a function is asked
    at that moment.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            loop="none",
            access_log=debug,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.INFO if debug else logging.WARNING)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server: http")
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if server.started:
            on_ready()
        await asyncio.shield(serving)
    finally:
        closing.set()
        seconds = drain() if callable(drain) else drain
        # uvicorn looks only now and then whether it should end: what connects meanwhile belongs to whoever comes next.
        for each in getattr(server, "servers", ()):
            each.close()
        await asyncio.sleep(_ON_THEIR_WAY)
        server.config.timeout_graceful_shutdown = max(1, round(seconds))
        server.should_exit = True
        await _finish(serving, seconds + 2.0)


async def _finish(serving: asyncio.Task[None], seconds: float) -> None:
    await asyncio.wait({serving}, timeout=seconds)
    if not serving.done():
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
