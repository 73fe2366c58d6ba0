"""Requests that come through the gateway: who they are really from is believed on the word of a shared secret alone."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from gpustack.dataplane.asgi import Receive, Scope, Send
from gpustack.dataplane.gateway.backstage import MARK

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def fronted(app: App, secret: str) -> App:
    """Return ``app`` for requests of which those that carry ``secret`` come through the gateway; empty is no gateway."""
    expected = secret.encode()

    async def judging(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = _judged(scope, expected)
        await app(scope, receive, send)

    return judging


def _judged(scope: Scope, expected: bytes) -> Scope:
    headers = scope["headers"]
    shown = next((value for name, value in headers if name == MARK), None)
    if shown is None:
        return scope
    # Nobody else may learn by trial whether a mark is right: it is taken off, and means nothing.
    changed = {**scope, "headers": [each for each in headers if each[0] != MARK]}
    if not expected or not hmac.compare_digest(shown, expected):
        return changed
    for name, value in headers:
        if name == b"x-forwarded-for":
            changed["client"] = (value.decode("latin-1"), 0)
        elif name == b"x-forwarded-proto":
            changed["scheme"] = value.decode("latin-1")
    changed["headers"] = [each for each in changed["headers"] if not each[0].startswith(b"x-forwarded-")]
    return changed
