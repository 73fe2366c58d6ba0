"""A plain ASGI program with GPUStack below /gpustack: ``python plain_asgi.py DATA_DIR [DATABASE_URL [PORT]]``.

Its own routes are ``/`` and ``/seen``, which tells what happened on the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import uvicorn

from gpustack.embedding import EmbeddedServer, EmbeddedWorker, Events

MOUNT = "/gpustack"


class Site:
    """The program: GPUStack lives as long as it does."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or hand on to GPUStack what is below its path."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == MOUNT or scope["path"].startswith(MOUNT + "/"):
            await self.server.app({**scope, "root_path": MOUNT}, receive, send)
        elif scope["path"] == "/seen":
            await _answer(send, 200, self.seen)
        else:
            await _answer(send, 200 if scope["path"] == "/" else 404, {"GPUStack": MOUNT})

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.server)
                await stack.enter_async_context(EmbeddedWorker(self.server))
                events = await stack.enter_async_context(self.server.events())
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            listening = asyncio.create_task(self._listen(events))
            stack.callback(listening.cancel)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _listen(self, events: Events) -> None:
        async for event in events:
            self.seen.append(f"{event.kind} {event.id} {event.change}")


async def _answer(send: Any, status: int, content: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def main(data_dir: str, database_url: str | None = None, port: str = "8000") -> None:
    """Serve until Ctrl-C. Watches are endless answers: a limit lets them end."""
    server = EmbeddedServer(
        data_dir=data_dir, database_url=database_url, settings={"disable_update_check": True}
    )
    uvicorn.run(Site(server), port=int(port), timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main(*sys.argv[1:4])
