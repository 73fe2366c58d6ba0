"""Answers that go on: lines of a watch, lines of a log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from litestar import Response


class Streamed(Response[Any]):
    """Sends the pieces of a generator as they come; closes the generator as soon as the client leaves."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(None, media_type=media_type)
        self._pieces = pieces
        self._type = media_type
        self._on_end = on_end

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ASGI application that streams."""
        del args, kwargs
        return self._run

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        del scope
        work = asyncio.create_task(self._send(send))
        listener = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = work.done()
            work.cancel()
            listener.cancel()
            await asyncio.gather(work, listener, return_exceptions=True)
            if self._on_end is not None:  # a generator that never began would not clean up by itself
                await self._on_end()
        if finished and not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _send(self, send: Any) -> None:
        headers = [
            (b"content-type", self._type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        async with contextlib.aclosing(self._pieces) as pieces:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
