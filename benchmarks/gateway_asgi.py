"""What a proxy of the usual parts costs: ``gateway_asgi.py PORT ENGINE_PORT`` is uvicorn in front and aiohttp behind.

It passes requests and answers on, and does nothing else. aiohttp is no dependency of GPUStack's; without it there is no
such figure.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

_NOT_ON = {b"host", b"content-length", b"connection", b"transfer-encoding"}


class _Proxy:
    """An ASGI application."""

    def __init__(self, engine: int) -> None:
        self._engine = f"http://127.0.0.1:{engine}"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _NOT_ON
        ]
        async with self._session.request(
            scope["method"], self._engine + scope["path"], data=body, headers=headers
        ) as answer:
            kept = [
                (name, value)
                for name, value in answer.raw_headers
                if name.lower() not in _NOT_ON or name.lower() == b"content-length"
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        _Proxy(int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="error",
    )
