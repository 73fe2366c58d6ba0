"""The data path inside another server: ``/v1`` as an ASGI application, for where there are no gateway processes.

The same :class:`~gpustack.dataplane.gateway.Gateway` answers; only the bytes come and go by ASGI's messages.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import quote, unquote

from gpustack.dataplane import errors
from gpustack.dataplane.admission import Admission
from gpustack.dataplane.asgi import Message, Receive, Scope, Send
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.cors import CorsPolicy
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway.books import Books
from gpustack.dataplane.gateway.service import Backstage, Fields, Gateway, Parts
from gpustack.dataplane.http import (
    NOT_FOR_CLIENTS,
    BodyPlan,
    Header,
    Headers,
    KnownAnswer,
    Limits,
    Refusal,
    Reply,
    Request,
    Upstream,
    judging,
)
from gpustack.dataplane.table.load import LoadTeller
from gpustack.kit.errors import GPUStackError
from gpustack.kit.text import human_bytes
from gpustack.plugin.routing import Principal, Route, RoutingDelta, RoutingTable

log = logging.getLogger(__name__)

MAX_BODY = 64 << 20
_LIMITS = Limits()
#: Bytes of an answer that may wait for a client before the engine is made to wait.
_HIGH_WATER = 256 << 10

#: Tells who made a request that carries no key, by its cookie for instance; None is nobody.
Fallback = Callable[[Scope], Awaitable[Principal | None]]


async def nobody(scope: Scope) -> Principal | None:
    """Know no other credentials than keys."""
    del scope
    return None


class InProcess(Gateway):
    """A gateway whose requests may come with somebody who is known already."""

    def _principal(self, request: Request, fields: Fields) -> Principal | None:
        known = request.context
        return known if isinstance(known, Principal) else super()._principal(request, fields)


class GatewayApp:
    """Answers what :func:`~gpustack.dataplane.gateway.operations.is_inference` tells of, as an ASGI application."""

    def __init__(
        self,
        gateway: InProcess,
        *,
        load: LoadTeller,
        fallback: Fallback = nobody,
        max_body: int = MAX_BODY,
    ) -> None:
        self._gateway = gateway
        #: The same gateway on sockets.
        self._fronts: list[Gateway] = []
        #: What it has to do.
        self.load = load
        self._fallback = fallback
        self._max_body = max_body

    def apply(self, table: RoutingTable, delta: RoutingDelta | None = None) -> None:
        """Serve ``table`` from the next request on."""
        changed = None if delta is None else {*delta.changed, *delta.removed}
        self._gateway.apply(table, changed)
        for each in self._fronts:
            each.follow(table)
        if delta is not None and delta.closed:
            for each in (self._gateway, *self._fronts):
                each.close_keys(delta.closed)

    def front(self, backstage: Backstage, cors: CorsPolicy | None) -> Gateway:
        """Return this data path as a service for sockets of our own; ``backstage`` answers what is not for models."""
        ours = self._gateway
        made = Gateway(
            Parts(
                upstream=ours.upstream,
                chooser=ours.chooser,
                admission=ours.admission,
                books=ours.books,
                budget=ours.budget,
                backstage=backstage,
                cors=cors,
                hold_seconds=ours.hold_seconds,
                clock=ours.clock,
            )
        )
        made.follow(ours.table)
        self._fronts.append(made)
        return made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an answer that is cut off leaves its connection unfinished."""
        request = _request_of(scope)
        reply = _Reply(request)
        judged = _fault(request) or await self._judged(scope, request)
        if isinstance(judged, Refusal):
            # Nothing is received: a client that waits for a word before it sends its body gets this one.
            reply.refuse(judged)
            await reply.send(send)
            return
        limit = self._max_body if judged.limit is None else judged.limit
        body = await _read(receive, limit, request.length or 0)
        if body is None:
            return  # the client has left
        if isinstance(body, ApiError):
            reply.answer(body.status, body.headers(), body.body())
            await reply.send(send)
            return
        request.body = body
        # It has the methods that a service asks of a reply, and none of its protocol's.
        self._gateway.handle(request, cast("Reply", reply))
        await reply.carry(receive, send)

    async def _judged(self, scope: Scope, request: Request) -> Refusal | BodyPlan:
        request_id = uuid.uuid4().hex
        try:
            if request.header(b"authorization") is None and request.header(b"x-api-key") is None:
                request.context = await self._fallback(scope)
            return self._gateway.begin(request)
        except GPUStackError as error:
            refusal = errors.of(error)
        except Exception:
            log.exception("request %s to %s failed", request_id, scope["path"])
            refusal = errors.internal(request_id)
        headers = (*refusal.headers(), (b"x-request-id", request_id.encode()))
        return Refusal(refusal.status, headers, refusal.body())


@asynccontextmanager
async def in_process(
    books: Books | None = None, fallback: Fallback = nobody, *, wake: Callable[[Route], None] | None = None
) -> AsyncIterator[GatewayApp]:
    """A data path of its own on the running event loop, with an empty table; ``wake`` starts what is asleep."""
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    upstream.start()
    admission = Admission(loop.time, loop, wake=wake)
    chooser = Chooser()
    try:
        yield GatewayApp(
            InProcess(Parts(upstream=upstream, chooser=chooser, admission=admission, books=books or Books())),
            fallback=fallback,
            load=LoadTeller(admission, chooser),
        )
    finally:
        admission.close()
        upstream.close()


def _request_of(scope: Scope) -> Request:
    client = scope.get("client")
    request = Request(client[0] if client else "", scope.get("scheme") == "https")
    version = scope.get("http_version", "1.1")
    # What newer ones say differently, the server in front has put into the words of this one.
    request.version = version if version.startswith(("0", "1")) else "1.1"
    request.method = scope["method"].encode("latin-1")
    request.path = _path_of(scope)
    request.query = bytes(scope["query_string"])
    request.headers = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    request.host = request.header(b"host") or b""
    request.head_only = request.method == b"HEAD"
    connection = request.header(b"connection")
    request.names_hops = connection is not None and connection.lower() not in (b"keep-alive", b"close")
    return request


def _path_of(scope: Scope) -> bytes:
    """Return the path as it was sent, without where this server is mounted."""
    path, raw = scope["path"], bytes(scope.get("raw_path") or b"").partition(b"?")[0]
    while raw:
        if unquote(raw.decode("latin-1")) == path:
            return raw
        at = raw.find(b"/", 1)
        raw = raw[at:] if at > 0 else b""
    return quote(path, safe="/:@!$&'()*+,;=").encode()


def _fault(request: Request) -> Refusal | None:
    """Refuse what our own HTTP layer refuses, as far as another server in front lets us see it."""
    limits = _LIMITS
    size = judging.size_of(request)
    fault: judging.Fault | None
    if len(request.path) + len(request.query) + 1 > limits.target_bytes:
        fault = judging.Fault(414, "the path with its query is too long", "target_too_long")
    elif len(request.headers) > limits.headers or size > limits.head_bytes:
        fault = judging.Fault(431, "the headers of the request are too large", "headers_too_large")
    elif b"upgrade" in (request.header(b"connection") or b"").lower():
        fault = judging.Fault(501, "Upgrade and CONNECT are not supported", "not_supported")
    else:
        request.target = request.path + (b"?" + request.query if request.query else b"")
        fault, _ = judging.judge(request, judging.Known())
    if fault is None:
        return None
    error = ApiError(fault.status, fault.message, code=fault.code)
    return Refusal(fault.status, tuple(error.headers()), error.body())


async def _read(receive: Receive, limit: int, announced: int) -> bytes | ApiError | None:
    """Return the whole body, an error for one that is too large, None when the client has left."""
    parts: list[bytes] = []
    size = 0
    while max(size, announced) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size <= limit and not message.get("more_body", False):
            return b"".join(parts)
    return ApiError(413, f"the request body is larger than {human_bytes(limit)}", code="request_too_large")


class _Reply:
    """What :class:`~gpustack.dataplane.http.Reply` is to a socket, for ASGI: see there for the methods."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = 0
        self.sent = 0
        self.gone = self.ended = False
        self.raw = False
        #: How pieces are framed, the server around us decides.
        self.in_chunks = False
        self._messages: deque[Message] = deque()
        self._waiting = 0
        self._ready = asyncio.Event()
        self._aborted = False
        self._on_gone: Callable[[], None] | None = None
        self._on_drain: Callable[[], None] | None = None

    # What the gateway calls -----------------------------------------------------------------------------

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        self.start(status, headers, len(body))
        if not self.request.head_only:
            self.write(body)
        self.end()

    def refuse(self, refusal: Refusal) -> None:
        self.answer(refusal.status, refusal.headers, refusal.body)

    def start(self, status: int, headers: Iterable[Header], length: int | None = None) -> None:
        if self.status:
            raise RuntimeError("an answer has begun already")
        self.status = status
        given = list(headers)
        if length is not None:
            given.append((b"content-length", b"%d" % length))
        self._put({"type": "http.response.start", "status": status, "headers": given})

    def write(self, data: bytes) -> None:
        if data and not self.ended and not self.gone:
            self.sent += len(data)
            self._waiting += len(data)
            self._put({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        if not self.ended and not self.gone:
            self.ended = True
            self._put({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        self._aborted = self.ended = True
        self._ready.set()

    def pass_head(
        self,
        status: int,
        headers: Headers,
        *,
        extra: bytes = b"",
        reframe: bool = False,
        without: frozenset[bytes] = NOT_FOR_CLIENTS,
    ) -> None:
        kept = [each for each in headers if each[0] not in without]
        own = [line.partition(b": ")[::2] for line in extra.split(b"\r\n") if line]
        length = next((value for name, value in headers if name == b"content-length"), None)
        self.start(status, [*kept, *own], int(length) if length is not None and not reframe else None)

    def pass_data(self, body: bytes, raw: bytes) -> None:
        del raw
        self.write(body)

    def pass_whole(self, known: KnownAnswer, length: bytes, body: bytes, *, extra: bytes = b"") -> None:
        self.pass_head(known.status, known.headers(length), extra=extra)
        self.write(body)
        self.end()

    @property
    def paused(self) -> bool:
        return self._waiting > _HIGH_WATER

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._on_drain = callback

    def on_gone(self, callback: Callable[[], None]) -> None:
        self._on_gone = callback

    # What ASGI wants ------------------------------------------------------------------------------------

    async def carry(self, receive: Receive, send: Send) -> None:
        """Send what is written until the answer has ended or the client has left, who is told of then."""
        listening = asyncio.create_task(_gone(receive))
        sending = asyncio.create_task(self.send(send))
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            listening.cancel()
            sending.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)
            self._leave()

    async def send(self, send: Send) -> None:
        """Send what is written until the answer has ended."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                await send(message)
                self._waiting -= len(message.get("body", b""))
                if self._waiting < _HIGH_WATER // 4:
                    self._drained()
            if self.ended:
                return  # one that was aborted stays unfinished: the server closes its connection
            self._ready.clear()
            await self._ready.wait()

    def _drained(self) -> None:
        callback, self._on_drain = self._on_drain, None
        if callback is not None:
            callback()

    def _leave(self) -> None:
        if self.ended:
            return
        self.gone = True
        callback, self._on_gone = self._on_gone, None
        if callback is not None:
            callback()

    def _put(self, message: dict[str, Any]) -> None:
        if not self.gone:
            self._messages.append(message)
            self._ready.set()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
