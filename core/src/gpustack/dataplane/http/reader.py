"""Turns the bytes of one client into requests. Knows neither sockets nor answers."""

from __future__ import annotations

import logging
import math
from io import BytesIO
from typing import Protocol

import httptools

from gpustack.dataplane.http import heads, judging
from gpustack.dataplane.http.holding import Bodies
from gpustack.dataplane.http.known import PLAIN, KnownRequest, KnownRequests
from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.proxies import TrustedProxies
from gpustack.dataplane.http.request import BodyPlan, Refusal, Request, Service
from gpustack.kit.text import human_bytes

_log = logging.getLogger(__name__)

#: Where reading is: between requests, in a head, in a body, in a body that nobody wants.
_IDLE, _HEAD, _BODY, _SWALLOW = range(4)
#: Heads that are learned on one connection: one that has more says something else each time.
_LEARNED = 32
_HEAD_END = b"\r\n\r\n"
#: Beside its data a chunk has its size, in a few digits, and two line ends.
_PLAIN_CHUNK = 16


class _Stop(Exception):
    """Ends parsing from inside a callback."""


class Rules(Protocol):
    """What a reader needs of its server."""

    limits: Limits
    service: Service
    proxies: TrustedProxies
    known: KnownRequests
    bodies: Bodies
    bad_requests: int

    def clock(self) -> float:
        """Return monotonic seconds."""
        ...

    def refusal(self, request: Request | None, status: int, message: str, code: str) -> Refusal:
        """Return an answer of this layer's own that ends the connection."""
        ...


class RequestReader:
    """Reads requests one after the other, each into an object of its own.

    After :meth:`feed`, ``ready`` holds what is complete, refused requests among it, in the order of arrival;
    whoever answers takes them out. When ``deaf``, nothing that still comes can be understood: what is in
    ``ready`` is the last that is answered. ``due`` is when the client has to have sent more, on the clock of the
    server; never (infinity) when nothing has begun.
    """

    __slots__ = (
        "_chunks",
        "_fed",
        "_feed",
        "_head_bytes",
        "_headers",
        "_judged",
        "_known",
        "_learned",
        "_limits",
        "_parser",
        "_peer",
        "_phase",
        "_request",
        "_rules",
        "_spill",
        "_started",
        "_tls",
        "_trusted",
        "deaf",
        "due",
        "owes_continue",
        "ready",
    )

    def __init__(self, rules: Rules, peer: str, *, tls: bool) -> None:
        self._rules = rules
        self._limits = rules.limits
        self._head_bytes = rules.limits.head_bytes
        self._peer = peer
        self._trusted = bool(rules.proxies) and rules.proxies.trusts(peer)
        self._tls = tls
        self._phase = _IDLE
        #: What has been found valid before on this connection, by parts and as a whole.
        self._judged = judging.Known()
        self._known: KnownRequest | None = None
        self._learned = 0
        self._request: Request | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._spill: BytesIO | None = None
        #: Bytes since the request began, never too many.
        self._fed = 0
        self._chunks = 0
        self._started = 0.0
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._feed = self._parser.feed_data
        self.ready: list[Request] = []
        self.deaf = False
        self.due = math.inf
        #: Whether the client waits for a word before it sends the body.
        self.owes_continue = False

    @property
    def begun(self) -> bool:
        """Whether a request has begun and is not complete."""
        return self._request is not None

    def feed(self, data: bytes) -> None:
        """Take what a client sent. Never raises: what is wrong with it becomes a refusal."""
        size = len(data)
        if size > self._head_bytes:
            self._feed_in_slices(data)
            return
        if self.deaf:
            return
        known = self._known
        if known is not None and data.startswith(known.before) and self._request is None and not self.ready:
            first = data.find(b"\r", known.size)
            start = first + known.skip
            if data.startswith(known.between, first):
                second = data.find(b"\r", start)
                at = second + known.rest
                if data.startswith(known.after, second):
                    credential, digits = data[known.size : first], data[start:second]
                    if not known.credential_first:
                        credential, digits = digits, credential
                    # Written as we would, the length can be nothing but what it is.
                    if digits == b"%d" % (size - at) and credential and not credential.translate(None, PLAIN):
                        self._take(known, credential, data[at:])
                        return
        self._fed = size if self._request is None else self._fed + size
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Stop):
                _log.error("a request could not be judged", exc_info=error.__context__ or error)
                self._end(500, "the server failed to answer; its log says why", "internal_error")
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._malformed(data)
            return
        request = self._request
        if request is None:
            self._learn(data)
            return
        if self._phase == _HEAD:
            if self._fed > self._limits.head_bytes or len(self._headers) > self._limits.headers:
                self._too_large()
        elif request.chunked:
            overhead = self._fed - request.size - _PLAIN_CHUNK * self._chunks - self._limits.head_bytes
            if overhead > self._limits.chunk_overhead_bytes:
                self._end(400, "the body's chunks hold too much beside the data", "bad_request")

    def _learn(self, data: bytes) -> None:
        """Remember the head of a request that has come as a whole, and alone."""
        if len(self.ready) != 1 or self.deaf or self._trusted:
            return
        request = self.ready[0]
        if not request.keep_alive:
            self._known = None
        elif self._learned < _LEARNED and request.fields is not None and request.length and request.plan:
            end = data.find(_HEAD_END) + len(_HEAD_END)
            if end + request.length == len(data):
                self._learned += 1
                self._known = self._rules.known.learn(data[:end], request)

    def _take(self, known: KnownRequest, credential: bytes, body: bytes) -> None:
        """Take a whole request whose head is one that was found valid before: the parser has nothing to add."""
        size = len(body)
        request = Request(
            self._peer, self._tls, known.method, known.target, known.target, b"", known.host,
            b"", size, 0, True, known, credential,
        )  # fmt: skip
        rules, limits = self._rules, self._limits
        try:
            plan = rules.service.begin(request)
        except Exception as error:  # noqa: BLE001  (whatever it is, this client gets an answer)
            _log.error("a request could not be judged", exc_info=error)
            self._request = request
            self._end(500, "the server failed to answer; its log says why", "internal_error")
            return
        if isinstance(plan, BodyPlan):
            limit = limits.body_bytes if plan.limit is None else plan.limit
            request.plan = plan
            if size <= limit and rules.bodies.take(request, size):
                request.body = body
                self.ready.append(request)
                return
            self._request = request
            if size > limit:
                self._body_too_large(limit)
            else:
                self._too_much()
        elif plan.close or size > limits.swallowed_bytes:
            self._request = request
            self._queue_last(plan)
        else:
            request.refusal = plan
            self.ready.append(request)

    def _feed_in_slices(self, data: bytes) -> None:
        """A read can hold more than any head may, and the parser does not stop by itself."""
        size = self._limits.head_bytes
        for start in range(0, len(data), size):
            self.feed(data[start : start + size])

    def restart(self) -> None:
        """Give a client that had to wait its time anew."""
        if self._request is not None:
            limits = self._limits
            self._started = now = self._rules.clock()
            self.due = now + (limits.head_seconds if self._phase == _HEAD else limits.body_seconds)

    def time_out(self) -> None:
        """The client has taken too long: what it has begun is refused."""
        if self._request is not None and not self.deaf:
            what = "headers" if self._phase == _HEAD else "body"
            self._end(408, f"the {what} of the request did not come in time", "request_timeout")

    def close(self) -> None:
        """Let go of everything."""
        for request in (*self.ready, self._request):
            if request is not None:
                self.give_back(request)
        self.ready.clear()
        self.deaf = True
        self.due = math.inf
        self._request = self._spill = self._parser = None
        self._headers = []
        self._feed = _nothing

    def give_back(self, request: Request) -> None:
        """The body of ``request`` is held no longer."""
        self._rules.bodies.give_back(request)

    # What the parser calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.ready:
            if len(self.ready) >= self._limits.pipelined:
                self.ready[-1].keep_alive = False
                self.deaf = True
                raise _Stop
            self._fed = 0  # the bytes of this read belong to others too
        self._request = request = Request(self._peer, self._tls)
        request.headers = self._headers = []
        self._phase = _HEAD
        self._started = now = self._rules.clock()
        self.due = now + self._limits.head_seconds

    def on_url(self, url: bytes) -> None:
        request = self._request
        assert request is not None
        request.target = url = request.target + url if request.target else url
        if len(url) > self._limits.target_bytes:
            raise self._end(414, "the path with its query is too long", "target_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request, parser = self._request, self._parser
        assert request is not None
        assert parser is not None
        limits = self._limits
        request.method = method = parser.get_method()
        request.version = parser.get_http_version()
        request.head_only = method == b"HEAD"
        self._headers = []  # for trailers: the request is judged without them
        if len(request.headers) > limits.headers:
            raise self._too_large()
        if self._fed > limits.head_bytes and judging.size_of(request) > limits.head_bytes:
            raise self._too_large()
        if parser.should_upgrade():
            raise self._end(501, "Upgrade and CONNECT are not supported", "not_supported")
        fault, forwarded = judging.judge(request, self._judged)
        if fault is not None:
            raise self._end(*fault)
        if forwarded:
            self._believe(request)
        plan = self._rules.service.begin(request)
        if isinstance(plan, Refusal):
            if plan.close or not judging.worth_swallowing(request, limits):
                raise self._queue_last(plan)
            request.refusal = plan
            self._phase = _SWALLOW
        else:
            request.plan = plan
            self._phase = _BODY
        if request.length or request.chunked:
            self._begin_body(request, plan)

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        request = self._request
        assert request is not None
        size = len(body)
        if self._phase == _SWALLOW:
            self._swallow(request, size)
            return
        if request.chunked and request.size + size > self._limit(request.plan):
            raise self._body_too_large(self._limit(request.plan))
        if not self._rules.bodies.take(request, size):
            raise self._too_much()
        if size == request.length:
            request.body = body
            return
        self._await_more(request.size)
        # Pieces can be a byte each: kept apart they would take fifty times their size.
        if self._spill is not None:
            self._spill.write(body)
        elif request.body:
            self._spill = BytesIO()
            self._spill.write(request.body)
            self._spill.write(body)
            request.body = b""
        else:
            request.body = body

    def on_message_complete(self) -> None:
        request, parser = self._request, self._parser
        assert request is not None
        assert parser is not None
        request.keep_alive = parser.should_keep_alive()  # holds inside this callback only
        if self._spill is not None:
            request.body = self._spill.getvalue()  # without a copy, unlike that of a bytearray
            self._spill = None
        self.owes_continue = False
        self._request = None
        self._phase = _IDLE
        self.due = math.inf
        self.ready.append(request)

    # Judging --------------------------------------------------------------------------------------------

    def _begin_body(self, request: Request, plan: BodyPlan | Refusal) -> None:
        limits = self._limits
        self._chunks = 0
        self._await_more(0)
        length = request.length or 0
        if isinstance(plan, Refusal):
            request.length = length
            return
        limit = limits.body_bytes if plan.limit is None else plan.limit
        if length > limit:
            raise self._body_too_large(limit)
        if not self._rules.bodies.has_room(request, length):
            raise self._too_much()
        self.owes_continue = request.expects

    def _await_more(self, size: int) -> None:
        """Set when the next piece of a body has to be there, of which ``size`` bytes have come."""
        limits = self._limits
        large = max(size - limits.large_bytes, 0)
        allowed = (size - large) / limits.body_rate + large / limits.large_body_rate
        end = self._started + limits.head_seconds + limits.body_seconds + allowed
        self.due = min(end, self._rules.clock() + limits.body_seconds)

    def _limit(self, plan: BodyPlan | None) -> int:
        limit = plan.limit if plan is not None else None
        return self._limits.body_bytes if limit is None else limit

    def _swallow(self, request: Request, size: int) -> None:
        """Count what is thrown away, and give up on a body in chunks that does not end."""
        request.length = (request.length or 0) + (size if request.chunked else 0)
        if request.chunked and request.length > self._limits.swallowed_bytes:
            assert request.refusal is not None
            raise self._queue_last(request.refusal)

    def _believe(self, request: Request) -> None:
        """Take a trusted proxy's word on where a request comes from, and nobody else's; nothing of it is passed on."""
        proxies = self._rules.proxies
        if self._trusted:
            request.peer = proxies.client(self._peer, request.headers)
            request.tls = request.tls or proxies.tls(request.headers)
        request.headers = [each for each in request.headers if each[0] not in heads.FORWARDING]

    # Refusing -------------------------------------------------------------------------------------------

    def _malformed(self, data: bytes) -> None:
        if self._request is None and self.ready and not self.ready[-1].keep_alive:
            self.deaf = True  # bytes after what was said to be the last request
            return
        tls = data[:2] == b"\x16\x03" and not self._tls
        hint = "; this port speaks HTTP without TLS" if tls else ""
        self._end(400, f"this is not a valid HTTP/1.1 request{hint}", "bad_request")

    def _too_large(self) -> _Stop:
        return self._end(431, "the headers of the request are too large", "headers_too_large")

    def _body_too_large(self, limit: int) -> _Stop:
        return self._end(413, f"the request body is larger than {human_bytes(limit)}", "request_too_large")

    def _too_much(self) -> _Stop:
        return self._end(503, "too many large requests are held at the moment; try again later", "overloaded")

    def _end(self, status: int, message: str, code: str) -> _Stop:
        self._rules.bad_requests += 1
        return self._queue_last(self._rules.refusal(self._request, status, message, code))

    def _queue_last(self, refusal: Refusal) -> _Stop:
        """Queue ``refusal`` as the last answer, whatever more may come; in a callback, raise what comes back."""
        request = self._request or Request(self._peer, self._tls)
        if request.target and self._parser is not None and request.known is None:
            request.head_only = self._parser.get_method() == b"HEAD"
        self.give_back(request)
        request.body = b""
        request.refusal = refusal
        request.keep_alive = False
        self._request = self._spill = None
        self.owes_continue = False
        self.deaf = True
        self.due = math.inf
        self.ready.append(request)
        return _Stop()


def _nothing(data: object) -> None:
    """Takes the parser's place when there is nobody to parse for."""
