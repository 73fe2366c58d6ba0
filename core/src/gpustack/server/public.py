"""The ports of a server that has no gateway before it: the data path's own HTTP, with the application behind it.

Models are answered as a gateway process would, byte for byte; everything else is the application's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from socket import socket

from gpustack.dataplane.cors import CorsPolicy
from gpustack.dataplane.gateway.application import App, Application
from gpustack.dataplane.gateway.asgi import GatewayApp
from gpustack.dataplane.gateway.backstage import refusal_body
from gpustack.dataplane.http import HttpServer, Limits
from gpustack.server.listen import Tls

#: Seconds that what is in flight has at least, and that the last word of what is cut off may take.
_LEAST, _LAST_WORD = 1.0, 0.3
_BACKLOG = 2048


class Public:
    """Serves ``inference`` and, for everything that is not for models, ``app``.

    ``cors`` is for the answers of models; the application has its own way.
    """

    def __init__(
        self, inference: GatewayApp, app: App, *, cors: CorsPolicy | None, limits: Limits | None = None
    ) -> None:
        self._application = Application(app)
        self.gateway = inference.front(self._application, cors)
        self.http = HttpServer(self.gateway, limits, error_body=refusal_body)

    async def serve(
        self,
        listeners: Sequence[socket],
        *,
        tls: Tls | None = None,
        drain: float | Callable[[], float],
        closing: asyncio.Event,
        on_ready: Callable[[], None],
        more: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Answer until cancelled, as :func:`gpustack.server.listen.serve` does: see there."""
        loop, http = asyncio.get_running_loop(), self.http
        http.start()
        serving: list[asyncio.Server] = []
        try:
            for sock, context in [*((each, None) for each in listeners), *([tls] if tls else [])]:
                server = await loop.create_server(http.protocol, sock=sock, ssl=context, backlog=_BACKLOG)
                serving.append(server)
            on_ready()
            await asyncio.Event().wait()
        finally:
            closing.set()
            for server in serving:
                server.close()
            await self._finish(max(drain() if callable(drain) else drain, _LEAST), more)

    async def _finish(self, seconds: float, more: Callable[[], float]) -> None:
        try:
            if not await self.http.settle(seconds) and not await self.http.settle(more()):
                await self._application.cut_off(_LAST_WORD)
                await self.http.settle(_LAST_WORD)
        finally:
            self.http.close()
