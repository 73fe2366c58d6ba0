"""The little of ASGI that the data path uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
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
