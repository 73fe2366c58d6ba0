"""A whole gateway in a few threads, without GPUStack's data path: what the suite with traffic is proven by.

Each thing that a gateway does is a method of its own here, so that a broken one differs in one of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from gpustack.plugin import (
    Gateway,
    GatewayHost,
    NoSettings,
    Principal,
    Route,
    RoutingDelta,
    RoutingTable,
    Target,
    UsageRecord,
    Verdict,
)

KINDS = {"/v1/chat/completions": "llm", "/v1/embeddings": "embedding"}
USAGE = {"include_usage": True}


class Turned(Exception):
    """The request is answered by the gateway itself."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass
class Work:
    """One request that an engine is asked."""

    who: Principal
    route: Route
    path: str
    body: bytes
    document: dict[str, Any]
    headers: dict[str, str]
    client: socket.socket
    began: float = field(default_factory=time.monotonic)
    target: Target | None = None
    status: int = 200
    pieces: int = 0
    usage: dict[str, int] = field(default_factory=dict)

    @property
    def shows_usage(self) -> bool:
        return bool((self.document.get("stream_options") or {}).get("include_usage"))


class SmallGateway(Gateway[NoSettings]):
    name = "small"
    settings_type = NoSettings

    def __init__(self, settings: NoSettings, host: GatewayHost) -> None:
        super().__init__(settings, host)
        self.table = RoutingTable()
        self.server: _Server | None = None
        self.metered: list[UsageRecord] = []
        self.lock = threading.Lock()
        self.asked: Counter[int | None] = Counter()
        self.running: Counter[int | None] = Counter()
        self.open: list[Work] = []
        self.chance = random.Random(7)

    # The plugin -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.server = _Server(("127.0.0.1", self.port()), self)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def port(self) -> int:
        return 0

    @property
    def public_urls(self) -> Sequence[str]:
        return () if self.server is None else (f"http://127.0.0.1:{self.server.server_address[1]}",)

    async def health(self) -> Verdict:
        return Verdict.yes() if self.server else Verdict.no("it is not entered")

    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        self.table = table
        if delta is not None:
            self.close(delta)

    def close(self, delta: RoutingDelta) -> None:
        for work in list(self.open):
            if work.who.key_id in delta.closed:
                with contextlib.suppress(OSError):
                    work.client.shutdown(socket.SHUT_RDWR)

    async def usage(self) -> AsyncIterator[Sequence[UsageRecord]]:
        while records := tuple(self.metered):
            yield records
            del self.metered[: len(records)]

    # Who asks, and what ---------------------------------------------------------------------------------

    def principal(self, headers: Any) -> Principal | None:
        shown = headers.get("Authorization", "")
        key = shown.removeprefix("Bearer ") if shown.startswith("Bearer ") else headers.get("X-API-Key", "")
        return self.table.principal(key, now=self.now())

    def now(self) -> float:
        return time.time()

    def may(self, who: Principal, route: Route) -> bool:
        return who.may_use(route.name)

    def models(self, who: Principal) -> list[str]:
        return [name for name, route in self.table.routes.items() if self.may(who, route)]

    def route(self, who: Principal, name: str) -> Route:
        route = self.table.routes.get(name)
        if route is None or not self.may(who, route):
            raise Turned(404, f"there is no model {name}")
        return route

    def suits(self, route: Route, path: str) -> bool:
        return KINDS[path] in route.categories

    def admit(self, who: Principal) -> None:
        limits = who.limits
        self.asked[who.key_id] += 1
        if limits.requests_per_minute is not None and self.asked[who.key_id] > limits.requests_per_minute:
            raise self.too_many(60)
        if limits.concurrency is not None and self.running[who.key_id] >= limits.concurrency:
            raise self.too_many(1)

    def too_many(self, seconds: int) -> Turned:
        return Turned(429, "too many requests", **{"Retry-After": str(seconds)})

    # The engine -----------------------------------------------------------------------------------------

    def order(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets in the order in which they are tried."""
        left, order = list(targets), []
        while left:
            weights = [each.weight for each in left]
            chosen = self.chance.choices(left, weights)[0] if any(weights) else left[0]
            left.remove(chosen)
            order.append(chosen)
        return order

    def tries(self, route: Route) -> Iterator[tuple[Route, Target]]:
        yield from ((route, each) for each in self.order(route.targets))
        if (other := self.table.routes.get(route.fallback)) is not None:
            yield from ((other, each) for each in self.order(other.targets))

    def sent(self, work: Work, target: Target) -> bytes:
        """Return the body that the engine gets: what changes is written over, byte for byte."""
        text = work.body.decode()
        if work.document.get("stream") and not work.shows_usage:
            end = text.rindex("}")
            text = f'{text[:end]},"stream_options":{json.dumps(USAGE)}{text[end:]}'
        if target.served_name:
            start, end = where(text, "model")
            text = text[:start] + json.dumps(target.served_name) + text[end:]
        return text.encode()

    def engine_headers(self, work: Work) -> dict[str, str]:
        return {"Content-Type": work.headers.get("content-type", "application/json")}

    def ask(self, work: Work) -> http.client.HTTPResponse:
        for route, target in self.tries(work.route):
            work.route, work.target = route, target
            engine = http.client.HTTPConnection(target.host, target.port, timeout=30)
            try:
                engine.connect()
            except OSError:
                continue
            engine.request("POST", work.path, self.sent(work, target), self.engine_headers(work))
            return engine.getresponse()
        raise Turned(503, "nobody serves it now")

    def lines(self, work: Work, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """Yield what the client gets of a stream. Raises OSError or HTTPException when it breaks."""
        while line := answer.readline():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                work.usage = event.get("usage") or work.usage
                work.pieces += any((each.get("delta") or {}).get("content") for each in event["choices"])
                if not event["choices"] and self.hides(work):
                    answer.readline()
                    continue
            yield line

    def hides(self, work: Work) -> bool:
        return not work.shows_usage

    def broken(self) -> bytes:
        """Return what ends a stream that broke; nothing: the connection is cut."""
        return b""

    # What it took ---------------------------------------------------------------------------------------

    def meter(self, work: Work) -> None:
        self.metered.append(self.record(work))

    def record(self, work: Work) -> UsageRecord:
        return UsageRecord(
            id=uuid.uuid4().hex,
            at=time.time(),
            model=(work.target and work.target.model) or work.route.name,
            instance_id=work.target and work.target.instance_id,
            user_id=work.who.user_id,
            key_id=work.who.key_id,
            status=work.status,
            prompt_tokens=work.usage.get("prompt_tokens", 0),
            completion_tokens=work.usage.get("completion_tokens", work.pieces),
            duration=time.monotonic() - work.began,
            operation=work.path,
            route=work.route.name,
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], gateway: SmallGateway) -> None:
        super().__init__(address, _Handler)
        self.gateway = gateway


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._turning(self._models)

    def do_POST(self) -> None:
        self._turning(self._pass_on)

    def _turning(self, do: Any) -> None:
        gateway = self.server.gateway
        try:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if (who := gateway.principal(self.headers)) is None:
                raise Turned(401, "no valid key")
            do(who, data)
        except Turned as turned:
            error = {"error": {"message": str(turned)}}
            self._whole(turned.status, json.dumps(error).encode(), **turned.headers)

    def _models(self, who: Principal, _data: bytes) -> None:
        names = self.server.gateway.models(who)
        self._whole(200, json.dumps({"object": "list", "data": [{"id": each} for each in names]}).encode())

    def _pass_on(self, who: Principal, data: bytes) -> None:
        gateway = self.server.gateway
        document = json.loads(data)
        route = gateway.route(who, document["model"])
        if not gateway.suits(route, self.path):
            raise Turned(400, f"{route.name} is not for {self.path}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        work = Work(who, route, self.path, data, document, headers, self.connection)
        with gateway.lock:
            gateway.admit(who)
            gateway.running[who.key_id] += 1
            gateway.open.append(work)
        try:
            self._answer(work)
        finally:
            with gateway.lock:
                gateway.running[who.key_id] -= 1
                gateway.open.remove(work)

    def _answer(self, work: Work) -> None:
        gateway = self.server.gateway
        answer = gateway.ask(work)
        work.status = answer.status
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            body = answer.read()
            work.usage = json.loads(body).get("usage") or {}
            gateway.meter(work)
            self._whole(answer.status, body)
            return
        self._stream(work, answer)
        gateway.meter(work)

    def _stream(self, work: Work, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        whole, lines = False, self.server.gateway.lines(work, answer)
        while True:
            try:
                line = next(lines, b"")
            except (OSError, http.client.HTTPException):
                line = b""
            if not line:
                break
            whole = whole or line.startswith(b"data: [DONE]")
            try:
                self._chunk(line)
            except OSError:
                work.status, self.close_connection = 499, True
                answer.close()
                return
        end = b"" if whole else self.server.gateway.broken()
        if whole or end:
            if end:
                self._chunk(end)
            self._chunk(b"")
        else:
            work.status, self.close_connection = 502, True

    def _whole(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def where(text: str, name: str) -> tuple[int, int]:
    """Return the first and the last index of a value of the outermost object."""
    decode = json.JSONDecoder().raw_decode
    at = text.index("{") + 1
    while True:
        key, at = decode(text, _past(text, at, ","))
        start = _past(text, at, ":")
        _, at = decode(text, start)
        if key == name:
            return start, at


def _past(text: str, at: int, mark: str) -> int:
    while text[at] in f" \t\r\n{mark}":
        at += 1
    return at
