"""A scripted server on loopback that answers as a test says, for what speaks HTTP to GPUStack."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class CutOff(Exception):
    """Raised in a body to break the connection without ending the answer."""


@dataclass
class Asked:
    """One request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """An answer: ``body`` as JSON, or ``pieces`` streamed one by one."""

    status: int = 200
    body: Any = None
    pieces: Iterable[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[Asked], Reply]


class FakeApi:
    """``api.on("GET", "/v2/models", Reply(body=…))``; several replies are given in turn, the last one for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.ending = threading.Event()
        self._routes: dict[tuple[str, str], list[Reply | Answer]] = {}
        self._lock = threading.Lock()
        self.url = ""

    def on(self, method: str, path: str, *answers: Reply | Answer) -> None:
        self._routes[method, path] = list(answers)

    def requests(self, method: str, path: str) -> list[Asked]:
        return [each for each in self.asked if (each.method, each.path) == (method, path)]

    def answer(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            answers = self._routes.get((asked.method, asked.path))
            if not answers:
                line = f"there is no {asked.path}"
                return Reply(404, {"code": 404, "reason": "NotFound", "message": line})
            chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        return chosen(asked) if callable(chosen) else chosen

    def hold(self, seconds: float = 20.0) -> Iterator[bytes]:
        """Keep a stream open and silent until the test ends."""
        self.ending.wait(seconds)
        yield from ()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def _serve(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        reply = self.api.answer(Asked(self.command, url.path, query, headers, body))
        try:
            self._send(reply)
        except (CutOff, ConnectionError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.pieces is None:
            content = b"" if reply.body is None else json.dumps(reply.body).encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in reply.pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that leaves in the middle is part of the tests."""


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    """Serve a FakeApi until the block ends."""
    api = FakeApi()
    handler = type("Handler", (_Handler,), {"api": api})
    server = _Server(("127.0.0.1", 0), handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield api
    finally:
        api.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


def event(kind: int, identity: int, data: dict[str, Any] | None = None, *, number: int = 0) -> bytes:
    """Return one line of a watch."""
    document = {"type": kind, "id": identity, "data": data or {}, "changed_fields": {}, "number": number}
    return json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def after(seconds: float, piece: bytes) -> Iterator[bytes]:
    """Yield ``piece`` a little later."""
    time.sleep(seconds)
    yield piece


def page(*items: dict[str, Any]) -> dict[str, Any]:
    """Return a list answer."""
    return {
        "items": list(items),
        "pagination": {"page": 1, "perPage": 0, "total": len(items), "totalPage": 1},
    }


_TIME = "2026-01-02T03:04:05Z"


def a_model(**fields: Any) -> dict[str, Any]:
    """Return a model as the API answers it."""
    return {
        "id": 1, "name": "tiny", "local_path": "/m/tiny.gguf", "cluster_id": 1, "replicas": 1,
        "created_at": _TIME, "updated_at": _TIME, **fields,
    }  # fmt: skip


def an_instance(**fields: Any) -> dict[str, Any]:
    """Return an instance as the API answers it."""
    return {
        "id": 11, "name": "tiny-abcde", "model_id": 1, "model_name": "tiny", "cluster_id": 1,
        "state": "pending", "state_since": _TIME, "created_at": _TIME, "updated_at": _TIME, **fields,
    }  # fmt: skip
