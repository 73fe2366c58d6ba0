"""Where each request goes, and what the door says itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from gpustack.dataplane.door.records import Engine, Records
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.hops import DIED, DOOR_SAYS, UNREACHED
from gpustack.dataplane.http import (
    NOT_FOR_CLIENTS,
    NOT_FOR_ENGINES,
    BodyPlan,
    Failure,
    Header,
    Refusal,
    Relay,
    Reply,
    Request,
    Upstream,
    host_header,
    request_head,
    request_line,
)
from gpustack.kit.net import LOOPBACK
from gpustack.plugin.routing import Timeouts

log = logging.getLogger(__name__)

_INSTANCES = b"/instances/"
_TO_ENGINE = re.compile(rb"/instances/([0-9]{1,18})(/.*)")
_METHODS = frozenset((b"GET", b"HEAD", b"POST"))
#: An engine's work has its name from the gateway; it gets no credential. The worker checks who asks.
_NOT_FOR_ENGINES = NOT_FOR_ENGINES - {b"x-request-id"}
_NOT_FOR_THE_WORKER = _NOT_FOR_ENGINES - {b"authorization"}
_NOT_BACK = NOT_FOR_CLIENTS - {b"x-request-id"}
_ENGINES_BODY = BodyPlan()
#: The worker itself takes next to nothing.
_WORKERS_BODY = BodyPlan(limit=1 << 20)
#: Whoever asks knows how long an answer may take, and leaves when that is over: these hold for nobody who is alive.
_TIMES = Timeouts(connect=5.0, first_byte=86_400.0, between=86_400.0)


class _Way(NamedTuple):
    """Where a request for an engine goes."""

    instance: int
    engine: Engine
    #: Its path there, as it was sent: what was escaped stays so.
    path: bytes


class DoorService:
    """The service behind a :class:`~gpustack.dataplane.door.server.DoorServer`.

    ``worker`` gives the loopback port of the worker's own API, None when there is none.
    """

    def __init__(self, records: Records, upstream: Upstream, worker: Callable[[], int | None]) -> None:
        self._records = records
        self._upstream = upstream
        self._worker = worker

    def begin(self, request: Request) -> Refusal | BodyPlan:
        """Judge a request by its head."""
        path = request.path
        if path.startswith(_INSTANCES):
            try:
                request.context = self._way(request)
            except ApiError as error:
                return _refusal(error)
            return _ENGINES_BODY
        if b"%" in path and unquote_to_bytes(path).startswith(_INSTANCES):
            return _refusal(_nothing_here())
        return _WORKERS_BODY

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request that is complete."""
        if request.context is not None:
            self._to_engine(request, reply, request.context)
        elif request.path == b"/healthz":
            reply.answer(200, [(b"content-type", b"text/plain; charset=utf-8")], b"ok")
        else:
            self._to_worker(request, reply)

    def _way(self, request: Request) -> _Way:
        """Return where a request goes that shows what it needs to. Raises ApiError."""
        found = _TO_ENGINE.fullmatch(request.path)
        if found is None:
            raise _nothing_here()
        if request.method not in _METHODS:
            raise ApiError(
                405, "engines are asked by GET and POST", code="method_not_allowed", allow="GET, HEAD, POST"
            )
        instance = int(found[1])
        token = self._records.token()
        if not token:
            raise _not_now("this worker has no door token yet; it joins its server first", "not_ready")
        if not self._records.opens(token, instance, _credential(request)):
            raise ApiError(
                401, "the credential of the instance is missing or wrong", code="invalid_credential"
            )
        engine = self._records.engine(instance)
        if engine is None:
            raise ApiError(404, f"instance {instance} is not on this worker", code="unknown_instance")
        if not engine.runs():
            raise _gone(instance)
        return _Way(instance, engine, found[2])

    def _to_engine(self, request: Request, reply: Reply, way: _Way) -> None:
        instance, engine, path = way
        # The body took its time, or the answer before this one on the same connection.
        if not engine.runs():
            _answer(reply, _gone(instance))
            return
        if request.query:
            first = _first_lines(request, path, engine.port)
        else:
            first = engine.first_lines(request.method, path)
        self._pass(request, reply, f"the engine of instance {instance}", engine.port, first, _NOT_FOR_ENGINES)

    def _to_worker(self, request: Request, reply: Reply) -> None:
        port = self._worker()
        if port is None:
            _answer(reply, _not_now("the worker does not run", "not_ready"))
            return
        first = _first_lines(request, request.path, port)
        self._pass(request, reply, "the worker", port, first, _NOT_FOR_THE_WORKER)

    def _pass(
        self, request: Request, reply: Reply, whom: str, port: int, first: bytes, without: frozenset[bytes]
    ) -> None:
        body = request.body
        head = request_head(first, request, len(body), without=without)
        relay = _Answer(reply, partial(_unanswered, reply, whom), without=_NOT_BACK)
        relay.ask(self._upstream, (LOOPBACK, port), head, body, _TIMES)


class _Answer(Relay):
    """An answer on its way back."""

    __slots__ = ()

    def on_end(self, clean: bool) -> None:
        """End it, and say so when it is not whole."""
        if not clean:
            failure = self._exchange.failure if self._exchange is not None else None
            why = failure.message if failure is not None else "ended early"
            log.warning("%s: the answer is not whole: it %s", self._reply.request.path.decode("latin-1"), why)
        super().on_end(clean)


def _first_lines(request: Request, path: bytes, port: int) -> bytes:
    target = b"%b?%b" % (path, request.query) if request.query else path
    return request_line(request.method, target, host_header(LOOPBACK, port))


def _unanswered(reply: Reply, whom: str, failure: Failure) -> None:
    message = f"{whom} {failure.message}"
    if failure.started:
        _answer(reply, ApiError(502, message, code="engine_failed"), DIED)
    else:
        _answer(reply, _not_now(message, "not_reached"))


def _answer(reply: Reply, error: ApiError, says: bytes = UNREACHED) -> None:
    reply.answer(error.status, _headers(error, says), error.body())


def _refusal(error: ApiError) -> Refusal:
    return Refusal(error.status, _headers(error), error.body())


def _headers(error: ApiError, says: bytes = UNREACHED) -> tuple[Header, ...]:
    """Return the headers of the door's own answer."""
    return (*error.headers(), (DOOR_SAYS, says))


def _nothing_here() -> ApiError:
    return ApiError(404, "there is nothing here", code="unknown_path")


def _not_now(message: str, code: str) -> ApiError:
    return ApiError(503, message, code=code, retry_after=1)


def _gone(instance: int) -> ApiError:
    return _not_now(f"the engine of instance {instance} does not run now", "not_reached")


def _credential(request: Request) -> bytes:
    """Return what ``Authorization: Bearer`` or ``X-API-Key`` shows, empty when neither does."""
    scheme, _, credential = (request.header(b"authorization") or b"").partition(b" ")
    if scheme.lower() == b"bearer" and credential.strip():
        return credential.strip()
    return request.header(b"x-api-key") or b""
