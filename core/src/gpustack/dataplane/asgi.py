"""The little of ASGI that the data path uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def header(scope: Mapping[str, Any], name: bytes) -> str:
    """Return the value of the request's header ``name`` (lower case), empty when it is absent."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return ""


def bearer(scope: Mapping[str, Any]) -> str:
    """Return the credential of ``Authorization: Bearer`` or ``X-API-Key``, empty when there is none."""
    scheme, _, credential = header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return header(scope, b"x-api-key").strip()


async def answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def while_listening(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do ``work``; cancel it at once when the client leaves, and return when it has ended."""
    task, listener = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, listener}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        finished = task.done()
        task.cancel()
        listener.cancel()
        await asyncio.gather(task, listener, return_exceptions=True)
    if finished:
        task.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
