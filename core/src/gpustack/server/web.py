"""Web apps of plugins: the files that each shows below its path, mounted once at start.

    apps = await WebApps.opened(stack, catalogue, host_for)
    if (found := apps.at(scope["path"])) is not None:
        await found(scope, receive, send)

The API's own paths cannot be taken; of two web apps that claim one path the first has it. One that is left out is a
warning that names its plugin, never the end of a start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote

from gpustack.dataplane.asgi import Receive, Scope, Send, answer, header
from gpustack.extensions import Catalogue, Guard, Registered, opened
from gpustack.kit.errors import GPUStackError
from gpustack.plugin import Host, Refused, WebApp
from gpustack.server.errors import body

log = logging.getLogger(__name__)

#: In a request's scope: the path, percent-encoded, below which somebody else's program has mounted this server.
MOUNT = "gpustack.mount"
#: First parts of paths that are the API's.
RESERVED = frozenset(
    {
        "_openapi",
        "auth",
        "docs",
        "healthz",
        "metrics",
        "openapi.json",
        "readyz",
        "redoc",
        "v1",
        "v1-openai",
        "v2",
        "version",
    }
)
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_INDEX = "index.html"
#: Seconds that a plugin has to open a web app.
_OPENING = 5.0
_PIECE = 256 << 10
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
]
#: Not the system's table: the types are the same on every machine.
_TYPES = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".css": "text/css",
    ".csv": "text/csv",
    ".eot": "application/vnd.ms-fontobject",
    ".gif": "image/gif",
    ".gz": "application/gzip",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".otf": "font/otf",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".wav": "audio/wav",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
    ".zip": "application/zip",
}
_TEXTS = ("text/", "application/json", "application/manifest+json", "application/xml", "image/svg+xml")


def mount_of(scope: Mapping[str, Any]) -> str:
    """Return where this server is mounted, percent-encoded; empty for one that has an address to itself."""
    found: str = scope.get(MOUNT, "")
    return found


class WebApps:
    """The web apps that are shown, by path. "" is the one for what nothing else answers."""

    def __init__(self) -> None:
        self._shown: dict[str, WebFiles] = {}
        self._owners: dict[str, Registered[WebApp[Any]]] = {}

    @classmethod
    async def opened(
        cls, stack: AsyncExitStack, catalogue: Catalogue, host_for: Callable[[str], Host]
    ) -> WebApps:
        """Open every web app of ``catalogue`` on ``stack``; one that cannot be shown is left out with a warning."""
        apps = cls()
        for name, registered in catalogue.web_apps.items():
            try:
                await apps._add(stack, catalogue, registered, host_for(name))
            except GPUStackError as error:
                catalogue.note_unfit(registered, error.message)
                log.warning("web app %s of plugin %s is left out: %s", name, registered.plugin, error)
        return apps

    async def _add(
        self,
        stack: AsyncExitStack,
        catalogue: Catalogue,
        registered: Registered[WebApp[Any]],
        host: Host,
    ) -> None:
        path = claimed(registered.cls.path)
        if (other := self._owners.get(path)) is not None:
            raise Refused(
                f"{registered.cls.path} is the path of the web app {other.name} of plugin {other.plugin}, too, "
                "which is shown; uninstall one of them"
            )
        app = await opened(stack, catalogue, registered, host, limit=_OPENING)

        def files() -> Path:
            return usable(app.files())

        self._shown[path] = WebFiles(
            path=path, folder=await Guard.call(registered.plugin, files, timeout=_OPENING)
        )
        self._owners[path] = registered

    def at(self, path: str) -> WebFiles | None:
        """Return what shows ``path``, the one with the longest path of its own; None when that is the API's, or nobody's."""
        if not self._shown:
            return None
        parts = path.split("/")
        for count in range(len(parts), 1, -1):
            if (found := self._shown.get("/".join(parts[:count]))) is not None and found.path:
                return found
        if len(parts) > 1 and parts[1] in RESERVED:
            return None
        return self._shown.get("")


def claimed(path: str) -> str:
    """Return the path that a web app wants, without a slash at its end. Raises Refused when it cannot be one."""
    wanted = path.rstrip("/")
    if wanted == "" and path.startswith("/"):
        return ""
    if not _PATH.fullmatch(wanted) or any(set(part) == {"."} for part in wanted[1:].split("/")):
        raise Refused(f"its path {path!r} is none; give one such as /ui")
    if wanted.split("/")[1] in RESERVED:
        raise Refused(f"its path {path} belongs to the API; give one such as /ui")
    return wanted


def usable(folder: object) -> Path:
    """Return the real path of a web app's folder. Raises Refused when it is none to show. Blocks."""
    if not isinstance(folder, Path) or not folder.is_absolute():
        raise Refused(f"its files() returned {folder!r}, which is no absolute path")
    real = folder.resolve()
    if not (real / _INDEX).is_file():
        raise Refused(f"there is no {_INDEX} in its folder {folder}")
    return real


@dataclass(slots=True, kw_only=True)
class _Found:
    """An open file to send. The path of its name decides its type."""

    name: str
    content: IO[bytes]
    size: int
    changed_ns: int

    @property
    def tag(self) -> str:
        return f'"{self.changed_ns:x}-{self.size:x}"'

    @property
    def changed(self) -> int:
        return self.changed_ns // 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WebFiles:
    """The files of one web app, as an ASGI application. ``folder`` is a real path, ``path`` has no slash at its end."""

    path: str
    folder: Path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for a path at or below :attr:`path`."""
        del receive
        if scope["method"] not in ("GET", "HEAD"):
            message = f"{scope['path']} takes GET only"
            await _answer(send, 405, [*_json(), (b"allow", b"GET, HEAD")], body(405, message))
            return
        parts = _parts(scope["path"].removeprefix(self.path))
        if parts is None:
            await _not_found(scope, send)
            return
        whole = scope["path"].endswith("/")
        if not whole and await asyncio.to_thread(self._is_folder, parts):
            # What its page names relatively lies below the folder, not beside it.
            await _answer(send, 307, [(b"location", self._as_folder(scope, parts))], b"")
            return
        found = await asyncio.to_thread(self._open, parts)
        if found is None:
            await _not_found(scope, send)
            return
        with found.content:
            await _send_file(scope, send, found)

    def _is_folder(self, parts: list[str]) -> bool:
        return bool(parts or self.path) and self._real([*parts, _INDEX]) is not None

    def _as_folder(self, scope: Scope, parts: list[str]) -> bytes:
        query = bytes(scope.get("query_string") or b"")
        where = mount_of(scope) + quote("/".join([self.path, *parts]) + "/")
        return where.encode() + (b"?" + query if query else b"")

    def _open(self, parts: list[str]) -> _Found | None:
        """Open the file of that name, a folder's page, or, for a name without a suffix, the app's page. Blocks."""
        real = self._real(parts) or self._real([*parts, _INDEX])
        if real is None and (not parts or not PurePosixPath(parts[-1]).suffix):
            real = self._real([_INDEX])
        if real is None:
            return None
        try:
            content = real.open("rb")
        except OSError:
            return None
        status = os.fstat(content.fileno())
        return _Found(name=real.name, content=content, size=status.st_size, changed_ns=status.st_mtime_ns)

    def _real(self, parts: list[str]) -> Path | None:
        """Return the real path of a file below our folder, None where there is none, or only by a link that leads out."""
        try:
            real = self.folder.joinpath(*parts).resolve(strict=True)
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
            return None
        return real if regular and real.is_relative_to(self.folder) else None


def _parts(below: str) -> list[str] | None:
    """Return the parts of a path, decoded already, or None for one that could lead out of the folder."""
    parts = below.strip("/").split("/") if below.strip("/") else []
    if "//" in below or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        return None
    return parts


async def _send_file(scope: Scope, send: Send, found: _Found) -> None:
    headers = [
        (b"etag", found.tag.encode()),
        (b"last-modified", formatdate(found.changed, usegmt=True).encode()),
        # Asked for again each time, and sent only when it has changed.
        (b"cache-control", b"no-cache"),
    ]
    if _is_known(scope, found):
        await _start(send, 304, headers)
        await send({"type": "http.response.body", "body": b""})
        return
    headers += [(b"content-type", _type_of(found.name)), (b"content-length", str(found.size).encode())]
    await _start(send, 200, headers)
    left = found.size if scope["method"] == "GET" else 0
    while left:
        piece = await asyncio.to_thread(found.content.read, min(left, _PIECE))
        if not piece:
            raise OSError(f"{found.name} became shorter while it was sent")
        left -= len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _is_known(scope: Scope, found: _Found) -> bool:
    """Tell whether the client has this very file already."""
    if tags := header(scope, b"if-none-match"):
        return any(each.strip().removeprefix("W/") in ("*", found.tag) for each in tags.split(","))
    try:
        since = parsedate_to_datetime(header(scope, b"if-modified-since"))
        return found.changed <= since.timestamp()
    except (ValueError, TypeError, OverflowError):
        return False


def _type_of(name: str) -> bytes:
    suffix = PurePosixPath(name).suffix.lower()
    kind = _TYPES.get(suffix, "application/octet-stream")
    return f"{kind}; charset=utf-8".encode() if kind.startswith(_TEXTS) else kind.encode()


def _json() -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"application/json")]


async def _not_found(scope: Scope, send: Send) -> None:
    await _answer(send, 404, _json(), body(404, f"there is no {scope['path']}"))


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    await answer(send, status, [*headers, *_HEADERS], content)


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *_HEADERS]})
