"""Finds out who makes a request: a key, a session, the local command line, a worker, or the registration token."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gpustack.dataplane import Principal
from gpustack.dataplane.asgi import bearer, header
from gpustack.db import Store
from gpustack.kit.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from gpustack.plugin.routing import digest
from gpustack.schemas import UserPublic
from gpustack.server.auth.caller import Access, Caller, Via
from gpustack.server.routing import Routing

COOKIE = "gpustack_session"
#: Workers' own tokens begin so, which tells them from keys before the database is asked.
WORKER_TOKEN = "gpustack_worker_"  # noqa: S105 - a prefix, no secret

#: More workers than any server has; tokens that were renewed are forgotten by this, too.
_MOST_REMEMBERED = 10_000
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class UnknownWorker(Unauthenticated):
    """A worker's token without a worker: it was deleted, and has to register again."""


class Authenticator:
    """Knows the credentials of this server."""

    def __init__(
        self, store: Store, routing: Routing, *, registration_token: str, cli_token: str, admin: UserPublic
    ) -> None:
        self._store = store
        self._routing = routing
        self._registration = digest(registration_token)
        self._cli = digest(cli_token)
        #: Who has shown a worker's token, by its digest: a sign of life counts while the database is away.
        self._workers: dict[str, Caller] = {}
        self._local = Caller(via=Via.LOCAL, user_id=admin.id, username=admin.username, is_admin=True)
        routing.add_fixed(self._cli, Principal(user_id=admin.id, username=admin.username, is_admin=True))

    async def caller(self, scope: Mapping[str, Any]) -> Caller | None:
        """Return who makes the request; None when nothing says so.

        Raises Unauthenticated for a credential that is wrong or over, and Forbidden for a session used from
        another site's page.
        """
        if credential := bearer(scope):
            return await self._by_credential(credential)
        if token := session_token(scope):
            return await self._by_session(scope, token)
        return None

    async def _by_credential(self, credential: str) -> Caller:
        known = digest(credential)
        if hmac.compare_digest(known, self._cli):
            return self._local
        if hmac.compare_digest(known, self._registration):
            return Caller(via=Via.REGISTRATION)
        if credential.startswith(WORKER_TOKEN):
            return await self._by_worker_token(known)
        principal = self._routing.table.principals.get(known)
        if principal is None or principal.user_id is None:
            raise Unauthenticated("this API key is not known here; it was deleted, or has expired")
        if principal.expired(time.time()):
            raise Unauthenticated("this API key has expired; make a new one")
        return Caller(
            via=Via.KEY,
            user_id=principal.user_id,
            username=principal.username,
            is_admin=principal.is_admin,
            inference_only=principal.allowed is not None,
            expires_at=principal.expires_at,
        )

    async def _by_worker_token(self, known: str) -> Caller:
        if self._store.away and (remembered := self._workers.get(known)) is not None:
            return remembered
        worker = await self._store.workers.by_token_digest(known)
        if worker is None:
            self._workers.pop(known, None)
            raise UnknownWorker("this worker's token is not known here; it has to register again")
        caller = Caller(
            via=Via.WORKER, worker_id=worker.id, worker_version=worker.version, username=worker.name
        )
        if len(self._workers) >= _MOST_REMEMBERED:
            self._workers.clear()
        self._workers[known] = caller
        return caller

    async def _by_session(self, scope: Mapping[str, Any], token: str) -> Caller:
        known = digest(token)
        user = await self._store.sessions.user_by_digest(known)
        if user is None or not user.is_active:
            raise Unauthenticated("the session is over; sign in again")
        if scope["method"] not in _SAFE:
            check_origin(scope)
        return Caller(
            via=Via.SESSION, user_id=user.id, username=user.username, is_admin=user.is_admin, session=known
        )

    async def principal(self, scope: Mapping[str, Any]) -> Principal | None:
        """Return who makes an inference request without a key: somebody with a session, or nobody.

        Raises Unavailable while the database, which has the sessions, is away.
        """
        if not session_token(scope):
            return None
        try:
            caller = await self.caller(scope)
        except (Unauthenticated, Forbidden):
            return None
        if caller is None:
            return None
        return Principal(user_id=caller.user_id, username=caller.username, is_admin=caller.is_admin)


def session_token(scope: Mapping[str, Any]) -> str:
    """Return the token in the session cookie, empty when there is none."""
    text = header(scope, b"cookie")
    if COOKIE not in text:
        return ""
    try:
        cookies: SimpleCookie = SimpleCookie(text)
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def check_origin(scope: Mapping[str, Any]) -> None:
    """Raise Forbidden when a browser sends this for a page of another site, which a cookie must not serve."""
    origin = header(scope, b"origin")
    cross = header(scope, b"sec-fetch-site") == "cross-site"
    if cross or (origin and urlsplit(origin).netloc.lower() != header(scope, b"host").lower()):
        raise Forbidden("a page of another site may not do this with your session")


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request through to ``handler`` when its caller has the access that ``opt["access"]`` names."""
    access = _access(handler)
    if access is Access.PUBLIC or "OPTIONS" in getattr(handler, "http_methods", ()):
        return
    try:
        caller = await _authenticator(connection).caller(connection.scope)
    except UnknownWorker as error:
        if handler.opt.get("worker_may_be_gone"):
            raise NotFound(error.message) from None
        raise
    if caller is None:
        raise Unauthenticated("sign in first, or send an API key as `Authorization: Bearer gpustack_…`")
    caller.check(access)
    connection.scope["user"] = caller


async def still_allowed(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Tell whether :func:`guard` would let this request through now, too.

    While the database is away nobody can tell, and who was let in stays.
    """
    try:
        caller = await _authenticator(connection).caller(connection.scope)
        if caller is not None:
            caller.check(_access(connection.route_handler))
    except (Unauthenticated, Forbidden):
        return False
    except Unavailable:
        return True
    return caller is not None


def _access(handler: BaseRouteHandler) -> Access:
    access: Access = handler.opt.get("access", Access.ADMIN)
    return access


def _authenticator(connection: ASGIConnection[Any, Any, Any, Any]) -> Authenticator:
    authenticator: Authenticator = connection.app.state.services.authenticator
    return authenticator
