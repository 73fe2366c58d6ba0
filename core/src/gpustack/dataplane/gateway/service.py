"""What a gateway answers itself, what it sends to engines, and what to the server."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, Protocol
from urllib.parse import unquote_to_bytes

from gpustack.dataplane import errors
from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser, RetryBudget
from gpustack.dataplane.cors import CorsPolicy, granted, preflight
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway.answers import asks_anthropic, error_body, model_entry, model_list
from gpustack.dataplane.gateway.books import Books
from gpustack.dataplane.gateway.course import Course
from gpustack.dataplane.gateway.hints import SESSIONS
from gpustack.dataplane.gateway.inference import Inference
from gpustack.dataplane.gateway.operations import (
    OPERATIONS,
    PROXY,
    PROXY_HEADER,
    Operation,
    is_inference,
    models_path,
)
from gpustack.dataplane.gateway.sessions import COOKIE, signed_in
from gpustack.dataplane.gateway.ways import Way
from gpustack.dataplane.http import (
    BodyPlan,
    Headers,
    Refusal,
    Reply,
    Request,
    Upstream,
    host_header,
    request_line,
)
from gpustack.plugin.routing import Principal, RoutingTable, Target

log = logging.getLogger(__name__)

_GIVEN_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_SESSION_COOKIE = COOKIE + b"="
_PLAN = BodyPlan()
#: What goes to the server, before anybody knows who asks: it takes no more itself.
_SERVER_PLAN = BodyPlan(limit=1 << 20, stranger=True)
#: The same for models, of whoever only the server knows.
_UNKNOWN_PLAN = BodyPlan(limit=8 << 20, stranger=True)
#: Header fields by name.
Fields = dict[bytes, bytes]
_NO_FIELDS: Fields = {}
#: Beside the credential, what a request's head can have that somebody has to look at.
_LOOKED_AT = frozenset((b"cookie", b"content-encoding", b"x-request-id", *SESSIONS))
#: First lines that are kept: one for each instance and operation that is asked.
_KEPT = 20_000


class Backstage(Protocol):
    """Answers what is not for models."""

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer ``request``, now or later."""


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a gateway is made of. Times are seconds."""

    upstream: Upstream
    chooser: Chooser
    admission: Admission
    books: Books = field(default_factory=Books)
    budget: RetryBudget | None = None
    #: None where nothing but models is served: everything else is 404 then.
    backstage: Backstage | None = None
    #: None is no sharing with pages of other origins.
    cors: CorsPolicy | None = None
    #: Between two signs of life to a client whose stream waits for its turn.
    hold_seconds: float = 5.0
    clock: Callable[[], float] = time.monotonic
    #: Whether the server may know of keys that the table does not have yet; it is then asked in their stead.
    behind: Callable[[], bool] = lambda: False


class _Preflight:
    """The context of a browser's question."""


_PREFLIGHT = _Preflight()


@dataclass(frozen=True, slots=True)
class _Listing:
    """The context of a question for the models there are, and when it came by the gateway's clock."""

    principal: Principal
    began: float


class Gateway:
    """The service behind an :class:`~gpustack.dataplane.http.HttpServer`. Everything happens on one event loop."""

    def __init__(self, parts: Parts) -> None:
        self.table = RoutingTable()
        self.upstream = parts.upstream
        self.chooser = parts.chooser
        self.admission = parts.admission
        self.books = parts.books
        self.clock = parts.clock
        self.budget = parts.budget or RetryBudget(parts.clock)
        self.cors = parts.cors
        self.hold_seconds = parts.hold_seconds
        self._backstage = parts.backstage
        self._behind_the_server = parts.behind
        #: A number of this process, and of the request within it.
        self._ids = os.urandom(6).hex().encode()
        self._count = 0
        self._first_lines: dict[tuple[int, bytes], tuple[Target, bytes]] = {}
        #: Of the present table's routes, those that were asked for, by every name they have.
        self._ways: dict[str, Way] = {}
        self._forgetting: asyncio.TimerHandle | None = None
        #: The requests for models that are being answered.
        self.open: set[Course] = set()

    def apply(self, table: RoutingTable, changed: Collection[str] | None = None) -> None:
        """Serve ``table`` from the next request on; ``changed`` names the routes that differ, None may be all."""
        ways = {} if changed is None else self._ways
        self.follow(table)
        self.chooser.apply(table)
        self.admission.apply(table, changed)
        for name in changed or ():
            ways.pop(name, None)
        self._ways = ways
        if changed is None:
            self._forget_addresses()
            return
        new = [route for name in changed if (route := table.routes.get(name)) is not None]
        self.upstream.want((each.host, each.port) for route in new for each in route.targets)
        if changed and self._forgetting is None:
            # A look at everything, for which a second is soon enough.
            self._forgetting = self.call_later(1.0, self._forget_addresses)

    def follow(self, table: RoutingTable) -> None:
        """Serve ``table`` beside another gateway that shares all parts, and has applied it to them."""
        self.table = table
        self._ways = {}
        if len(self._first_lines) > _KEPT:
            self._first_lines.clear()

    def _forget_addresses(self) -> None:
        """Keep no connection to where nobody is."""
        self._forgetting = None
        routes = self.table.routes.values()
        self.upstream.forget_all_but({(each.host, each.port) for route in routes for each in route.targets})

    def close_keys(self, keys: Collection[int]) -> None:
        """End the requests of these keys that are being answered; to be called once the table has them no longer."""
        for request in [each for each in self.open if each.principal.key_id in keys]:
            request.revoked()

    # What HTTP asks of a service ------------------------------------------------------------------------

    def begin(self, request: Request) -> Refusal | BodyPlan:
        """Judge a request by its head."""
        known = request.known
        if known is not None:
            operation = known.note
            if operation is None:
                operation = known.note = _usual(request)
            if operation is not False:
                # As for any other head. Whoever is not found here is told so there.
                found = self.table.principals.get(sha256(request.credential).hexdigest())
                if found is not None and (found.expires_at is None or not found.expired(time.time())):
                    request.context = (operation, found, "", _NO_FIELDS)
                    request.owner = found.user_id
                    return _PLAN
        operation = OPERATIONS.get(request.path)
        if operation is not None and request.method == b"POST":
            return self._begin(request, operation)
        if operation is None and not is_inference(request.path):
            return _SERVER_PLAN
        if self._is_preflight(request):
            request.context = _PREFLIGHT
            return BodyPlan(limit=0)
        began = self.clock()
        try:
            request.context = context = self._judged(request, operation, began)
        except ApiError as error:
            return self._refusal(request, operation, error, began)
        if context is None:
            return _UNKNOWN_PLAN
        principal = context[1] if type(context) is tuple else context.principal
        request.owner = principal.user_id
        return _PLAN

    def _begin(self, request: Request, operation: Operation) -> Refusal | BodyPlan:
        """The usual case."""
        began, fields = self.clock(), _fields(request)
        try:
            principal = self._principal(request, fields)
        except ApiError as error:
            return self._refusal(request, operation, error, began)
        if principal is None:
            return _UNKNOWN_PLAN
        request.context = (operation, principal, "", fields)
        request.owner = principal.user_id
        return _PLAN

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request that is complete."""
        context = request.context
        if type(context) is tuple:
            operation, principal, model, fields = context
            if fields:
                number = self._id(fields)
            else:
                self._count += 1
                number = b"%b-%x" % (self._ids, self._count)
            line = b"x-request-id: %b\r\n" % number
            Inference(self, request, reply, operation, principal, number, line, fields, self.clock()).begin(
                model
            )
        elif context is None:
            self._behind(request, reply)
        elif context is _PREFLIGHT:
            self._answer_preflight(request, reply)
        else:
            self._answer_models(request, reply, context)

    # Who asks for what ----------------------------------------------------------------------------------

    def _judged(self, request: Request, operation: Operation | None, began: float) -> Any:
        """Return what :meth:`handle` goes by: None for the server, a _Listing for the models' list, or what to ask."""
        model = ""
        names = models_path(request.path) if operation is None else None
        if operation is None and names is None:
            operation, model = _proxied(request)
        if operation is not None and not model and request.method != b"POST":
            raise _only(request, "POST")
        if names is not None and request.method not in (b"GET", b"HEAD"):
            raise _only(request, "GET")
        fields = _fields(request)
        principal = self._principal(request, fields)
        if principal is None:
            return None
        if operation is None:
            return _Listing(principal, began)
        return operation, principal, model, fields

    def _principal(self, request: Request, fields: Fields) -> Principal | None:
        """Return who asks; None for whoever is signed in to the server, which knows. Raises ApiError 401, or 415."""
        if len(fields) == len(request.headers):
            credential = _bearer(fields.get(b"authorization", b"")) or fields.get(b"x-api-key", b"").strip()
            cookie = fields.get(b"cookie", b"")
            encoded = b"content-encoding" in fields and _is_encoded(fields[b"content-encoding"])
        else:
            credential, cookie, encoded = _of_many(request.headers)
        if encoded:
            raise ApiError(
                415,
                "compressed request bodies are not understood; send plain JSON",
                code="invalid_request",
            )
        if credential:
            # The same as the table's own look-up, with one conversion less.
            found = (
                self.table.principals.get(sha256(credential).hexdigest())
                if credential.isascii()
                else self.table.principal(credential.decode("latin-1"), now=time.time())
            )
            if found is not None and (found.expires_at is None or not found.expired(time.time())):
                return found
            if self._backstage is not None and self._behind_the_server():
                return None
        elif _SESSION_COOKIE in cookie:
            person = signed_in(self.table, request)
            if person is not None or self._backstage is not None:
                return person
        raise errors.invalid_key()

    def _is_preflight(self, request: Request) -> bool:
        if self.cors is None or request.method != b"OPTIONS":
            return False
        return bool(request.header(b"origin") and request.header(b"access-control-request-method"))

    # Answers --------------------------------------------------------------------------------------------

    def _answer_models(self, request: Request, reply: Reply, asked: _Listing) -> None:
        principal, number = asked.principal, self._request_id(request)
        named = unquote_to_bytes(models_path(request.path) or b"").decode("utf-8", "replace")
        headers: Headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", number),
        ]
        headers += self.sharing(request)
        anthropic = asks_anthropic(request)
        status, body = 200, b""
        if not named:
            body = model_list(self.table, principal, anthropic=anthropic)
        elif (route := self.table.routes.get(named)) is not None and principal.may_use(named):
            body = model_entry(named, route, anthropic=anthropic)
        else:
            error = errors.unknown_model(named)
            status, body = error.status, error_body(error, None, anthropic=anthropic)
        reply.answer(status, headers, body)
        self.books.note(request, status, number, self.clock() - asked.began, reply=reply)

    def _answer_preflight(self, request: Request, reply: Reply) -> None:
        assert self.cors is not None
        values = [
            (request.header(name) or b"").decode("latin-1")
            for name in (b"origin", b"access-control-request-method", b"access-control-request-headers")
        ]
        status, headers, body = preflight(self.cors, *values)
        reply.answer(status, headers, body)

    def _refusal(
        self, request: Request, operation: Operation | None, error: ApiError, began: float
    ) -> Refusal:
        number = self._request_id(request)
        headers = (*error.headers(), (b"x-request-id", number), *self.sharing(request))
        refusal = Refusal(
            error.status, headers, error_body(error, operation, anthropic=asks_anthropic(request))
        )
        self.books.note(request, error.status, number, self.clock() - began)
        return refusal

    def _behind(self, request: Request, reply: Reply) -> None:
        if self._backstage is not None:
            self._backstage(request, reply)
            return
        path = request.path.decode("latin-1")
        error = ApiError(404, f"there is no {path} here", code="unknown_path")
        reply.answer(404, error.headers(), error.body())

    # What requests need ---------------------------------------------------------------------------------

    def _request_id(self, request: Request) -> bytes:
        return self._id(_fields(request))

    def _id(self, fields: Fields) -> bytes:
        if fields and (given := fields.get(b"x-request-id")) is not None:
            given = given.strip(b" \t")
            if _GIVEN_ID.fullmatch(given):
                return given
        self._count += 1
        return b"%b-%x" % (self._ids, self._count)

    def sharing(self, request: Request) -> Headers:
        """Return the headers that let a page of another origin read the answer."""
        policy = self.cors
        if policy is None:
            return []
        headers = granted(policy, (request.header(b"origin") or b"").decode("latin-1"))
        return [*headers, (b"vary", b"Origin")] if policy.varies else headers

    def first_lines(self, target: Target, operation: Operation, request: Request) -> bytes:
        """Return how a request to ``target`` begins: request line, Host, and the door's credential. Raises ValueError."""
        if request.query or operation.path not in _FIXED:
            return _first_lines(target, operation.path, request)
        key = (target.instance_id, operation.path)
        known = self._first_lines.get(key)
        if known is not None and known[0] is target:
            return known[1]
        lines = _first_lines(target, operation.path, request)
        self._first_lines[key] = (target, lines)
        return lines

    def way(self, name: str) -> Way | None:
        """Return what requests for the route ``name`` need of it; None where there is none."""
        way = self._ways.get(name)
        if way is None and (route := self.table.routes.get(name)) is not None:
            way = self._ways[name] = Way(route, self.admission.room(route), self.chooser.known(route))
        return way

    def between(self, name: str) -> Callable[[float], None] | None:
        """Return what the times between the pieces of a route's streams are told to."""
        metrics = self.books.metrics
        return None if metrics is None else metrics.between_tokens.of(name).observe

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Have ``callback`` called in ``seconds``."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Have ``callback`` called when others had their turn."""
        asyncio.get_running_loop().call_soon(callback, *args)


#: Paths whose first lines are worth keeping.
_FIXED = frozenset(each.path for each in OPERATIONS.values())


def _first_lines(target: Target, path: bytes, request: Request) -> bytes:
    whole = target.path_prefix.encode() + path + (b"?" + request.query if request.query else b"")
    method = b"POST" if path in _FIXED else request.method
    lines = request_line(method, whole, host_header(target.host, target.port))
    return (
        lines + b"authorization: Bearer %b\r\n" % target.credential.encode() if target.credential else lines
    )


def _usual(request: Request) -> Operation | Literal[False]:
    """Return what a head asks whose credential is all there is to look at."""
    operation = OPERATIONS.get(request.path)
    if operation is None or request.method != b"POST" or not _LOOKED_AT.isdisjoint(_fields(request)):
        return False
    return operation


def _fields(request: Request) -> Fields:
    """Return the headers by name; of several with one name the first one."""
    return dict(reversed(request.headers)) if request.fields is None else request.fields


def _bearer(value: bytes) -> bytes:
    """Return the token of an Authorization header, nothing when it has none."""
    scheme, _, rest = value.strip().partition(b" ")
    return rest.strip() if scheme == b"Bearer" or scheme.lower() == b"bearer" else b""


def _is_encoded(value: bytes) -> bool:
    return value.strip().lower() not in (b"", b"identity")


def _of_many(headers: Headers) -> tuple[bytes, bytes, bool]:
    """Return credential, cookie, and whether the body is encoded, where some header is there more than once.

    Raises ApiError 400 for two credentials of one kind: whoever looks at the other one sees somebody else.
    """
    credential = cookie = b""
    encoded = False
    seen = set()
    for name, value in headers:
        if name in (b"authorization", b"x-api-key"):
            if name in seen:
                raise ApiError(400, f"the header {name.decode()} is there twice", code="invalid_request")
            seen.add(name)
        if name == b"authorization":
            credential = _bearer(value) or credential
        elif name == b"x-api-key":
            credential = credential or value.strip()
        elif name == b"cookie":
            cookie = value
        elif name == b"content-encoding":
            encoded |= _is_encoded(value)
    return credential, cookie, encoded


def _proxied(request: Request) -> tuple[Operation, str]:
    """Return what a request to ``/model/proxy`` asks of which model. Raises ApiError 404."""
    if request.path.startswith(PROXY):
        rest = request.path[len(PROXY) :]
        named = request.header(PROXY_HEADER)
        if named is None:
            named, _, rest = rest.partition(b"/")
        name = unquote_to_bytes(named).decode("utf-8", "replace")
        # Whoever stands between us and the engine may resolve dots, and end at another instance.
        dotted = any(unquote_to_bytes(part) in (b".", b"..") for part in rest.split(b"/"))
        if name and not dotted:
            return Operation(path=b"/" + rest, metered=False, fixed=False), name
    path = request.path.decode("latin-1")
    raise ApiError(404, f"there is no {path}; see /docs for the paths there are", code="unknown_path")


def _only(request: Request, method: str) -> ApiError:
    path = request.path.decode("latin-1")
    return ApiError(405, f"{path} takes {method} only", code="method_not_allowed", allow=method)
