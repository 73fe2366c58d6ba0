"""A Litestar program with routes of its own and GPUStack below /gpustack: ``python with_litestar.py DATA_DIR [DATABASE_URL [PORT]]``."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from litestar import Litestar, asgi, get

from gpustack.embedding import EmbeddedServer, EmbeddedWorker, Events

MOUNT = "/gpustack"


def create_app(server: EmbeddedServer) -> Litestar:
    """Return the program; GPUStack lives as long as it does."""
    seen: deque[str] = deque(maxlen=1000)

    @get("/")
    async def front() -> dict[str, str]:
        return {"GPUStack": MOUNT}

    @get("/seen")
    async def what_was_seen() -> list[str]:
        return list(seen)

    @get("/models")
    async def models() -> list[str]:
        async with server.client() as client:
            return [model.name for model in await client.models.list_all()]

    @asgi(MOUNT, is_mount=True, copy_scope=True)
    async def gpustack(scope: Any, receive: Any, send: Any) -> None:
        await server.app(scope, receive, send)

    @asynccontextmanager
    async def living(_app: Litestar) -> AsyncGenerator[None]:
        async with server, EmbeddedWorker(server), server.events() as events:
            listening = asyncio.create_task(listen(events))
            try:
                yield
            finally:
                listening.cancel()

    async def listen(events: Events) -> None:
        async for event in events:
            seen.append(f"{event.kind} {event.id} {event.change}")

    return Litestar(
        [front, what_was_seen, models, gpustack], lifespan=[living], openapi_config=None, logging_config=None
    )


def main(data_dir: str, database_url: str | None = None, port: str = "8000") -> None:
    """Serve until Ctrl-C. Watches are endless answers: a limit lets them end."""
    server = EmbeddedServer(
        data_dir=data_dir, database_url=database_url, settings={"disable_update_check": True}
    )
    uvicorn.run(create_app(server), port=int(port), timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main(*sys.argv[1:4])
