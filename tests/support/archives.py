"""A server of archives on loopback, that breaks off, refuses or answers in the ways that real ones do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    """One request."""

    path: str
    range: str
    host: str


@dataclass
class ArchiveServer:
    """What it serves, by path, and how it misbehaves; ``asked`` are the requests so far."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    #: Statuses for the next requests, whatever they ask for.
    statuses: list[int] = field(default_factory=list)
    #: After so many bytes each of the next answers breaks off.
    breaks: list[int] = field(default_factory=list)
    #: Seconds before each answer.
    delay: float = 0.0
    #: It knows no ranges.
    whole: bool = False
    asked: list[Asked] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Return what was asked for, in order."""
        return [each.path for each in self.asked]


class _Handler(BaseHTTPRequestHandler):
    served: ArchiveServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        served = self.served
        # Through a proxy the whole address is asked for.
        path = re.sub(r"^http://[^/]+", "", self.path)
        served.asked.append(Asked(path, self.headers.get("Range", ""), self.headers.get("Host", "")))
        time.sleep(served.delay)
        content = served.files.get(path)
        if served.statuses:
            self._empty(served.statuses.pop(0))
        elif content is None:
            self._empty(404)
        else:
            self._send(content)

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        tag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and not self.served.whole and self.headers.get("If-Range") in (None, tag):
            start = int(match[1])
        if start >= len(content) > 0:
            self._empty(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.served.breaks.pop(0) if self.served.breaks else len(content)
        with contextlib.suppress(OSError):
            self.wfile.write(content[start:end])
        if end < len(content):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave: that is what some tests are about."""


@contextlib.contextmanager
def archive_server(host: str = "127.0.0.1") -> Iterator[ArchiveServer]:
    """Serve until the block ends."""
    served = ArchiveServer()
    handler = type("Handler", (_Handler,), {"served": served})
    with _Server((host, 0), handler) as server:
        served.url = f"http://{host}:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield served
        server.shutdown()


def zip_of(**entries: bytes | str) -> bytes:
    """Return a zip with files that can be executed; ``__`` in a name stands for ``-``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name.replace("__", "-"))
            info.external_attr = 0o100755 << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
