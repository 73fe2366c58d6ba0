"""The place of an embedded server in another ASGI application: at its root, or below any path."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from gpustack.dataplane.asgi import Message, Receive, Scope, Send, answer
from gpustack.server.app import App
from gpustack.server.errors import body
from gpustack.server.web import MOUNT

#: What the server looks at. The rest of a scope is the program's around it: its state, its user, its router's notes.
_KEPT = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "raw_path",
    "query_string",
    "headers",
    "client",
    "server",
    "extensions",
)
_COOKIE_PATH = re.compile(rb"(;\s*path=)/(?=;|$)", re.IGNORECASE)


def located(scope: Mapping[str, Any]) -> tuple[str, str]:
    """Return where the server is mounted, without a slash at its end, and the path below that.

    Some programs leave ``path`` whole and put the mount into ``root_path``, as ASGI has it; others take the mount off
    ``path``, and tell so in ``root_path`` or nowhere (litestar, which adds a slash to the end besides). What the client
    sent, ``raw_path``, tells which it was.
    """
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    whole = unquote(bytes(scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1"))
    stem, end = whole.rstrip("/"), path.rstrip("/")
    if stem != end and stem.endswith(end) and end[:1] in ("", "/"):
        mount = stem[: len(stem) - len(end)].rstrip("/")
        below = whole[len(mount) :] or "/"
        if _below(mount, root):
            return mount, below
        # A proxy before us has taken its part of the root off already.
        return (root if root.endswith(mount) else root + mount), below
    return root, (path[len(root) :] if _below(path, root) else path) or "/"


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


class Mounted:
    """An ASGI application that is there before its server is, and after: then it answers 503."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._inside = 0
        self._idle: asyncio.Event | None = None

    def open(self, app: App) -> None:
        """Answer with ``app`` from now on."""
        self._app, self._idle = app, asyncio.Event()

    async def close(self, patience: float) -> None:
        """Take no more requests, and wait for those in flight, but no longer than ``patience`` seconds."""
        self._app, idle = None, self._idle
        if self._inside and idle is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif self._app is None:
            message = "GPUStack does not run here now; try again"
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await answer(send, 503, headers, body(503, message))
        else:
            await self._pass_on(self._app, scope, receive, send)

    async def _pass_on(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        where, path = located(scope)
        # One slash: two would begin the name of a host.
        mount = quote("/" + where.strip("/")) if where else ""
        inner = {name: scope[name] for name in _KEPT if name in scope}
        inner |= {"path": path, "root_path": "", MOUNT: mount}
        self._inside += 1
        try:
            await app(inner, receive, _sending_below(mount, send) if mount else send)
        finally:
            self._inside -= 1
            if not self._inside and self._idle is not None:
                self._idle.set()


def _sending_below(mount: str, send: Send) -> Send:
    """Return ``send`` for answers whose cookies go to this server alone, and not to all that is at its host."""
    below = rb"\g<1>" + mount.encode()

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (name, _COOKIE_PATH.sub(below, value) if bytes(name).lower() == b"set-cookie" else value)
                for name, value in message["headers"]
            ]
            message = {**message, "headers": headers}
        await send(message)

    return sending


async def _lifespan(receive: Receive, send: Send) -> None:
    """Say yes to everything: the server's life is that of its context manager."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
