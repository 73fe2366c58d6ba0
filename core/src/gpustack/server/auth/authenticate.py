"""Finds out who makes a request: a key, a session, the local command line, a worker, or the registration token."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, NoReturn
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gpustack.dataplane import Principal
from gpustack.dataplane.asgi import bearer, header
from gpustack.db import Feed, Store
from gpustack.kit.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from gpustack.plugin.routing import digest
from gpustack.schemas import UserPublic
from gpustack.schemas.workers import SESSION_HEADER
from gpustack.server.auth.caller import Access, Caller, Via
from gpustack.server.auth.challenges import Challenges
from gpustack.server.auth.workers import KnownWorkers
from gpustack.server.routing import Routing

COOKIE = "gpustack_session"
#: Workers' own tokens begin so, which tells them from keys before the database is asked.
WORKER_TOKEN = "gpustack_worker_"  # noqa: S105 - a prefix, no secret

_SESSION = SESSION_HEADER.lower().encode()
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
        self.challenges = Challenges(registration_token)
        #: A sign of life counts while the database is away, too.
        self.workers = KnownWorkers()
        self._local = Caller(via=Via.LOCAL, user_id=admin.id, username=admin.username, is_admin=True)
        routing.add_fixed(self._cli, Principal(user_id=admin.id, username=admin.username, is_admin=True))

    async def follow(self, feed: Feed) -> NoReturn:
        """Ask the database again about each worker that changes, for ever."""
        while True:
            with contextlib.suppress(NotFound, Unavailable):
                async with feed.subscribe({"workers"}) as events:
                    async for event in events:
                        self.workers.changed(event.id)
            self.workers.all_changed()
            await asyncio.sleep(1.0)

    async def caller(self, scope: Mapping[str, Any], *, remembered: bool = False) -> Caller | None:
        """Return who makes the request; None when nothing says so.

        With ``remembered`` a worker counts without a look into the database while no event says otherwise.
        Raises Unauthenticated for a credential that is wrong or over, and Forbidden for a session used from
        another site's page.
        """
        if credential := bearer(scope):
            return await self._by_credential(credential, scope, remembered=remembered)
        if token := session_token(scope):
            return await self._by_session(scope, token)
        return None

    async def _by_credential(self, credential: str, scope: Mapping[str, Any], *, remembered: bool) -> Caller:
        known = digest(credential)
        if hmac.compare_digest(known, self._cli):
            return self._local
        if hmac.compare_digest(known, self._registration):
            return Caller(via=Via.REGISTRATION)
        if credential.startswith(WORKER_TOKEN):
            caller = await self._by_worker_token(known, remembered=remembered)
            if (session := _session_number(scope)) is not None and session != caller.worker_session:
                raise UnknownWorker(
                    f"worker {caller.username} was started again, as number {caller.worker_session}: this is start "
                    f"{session}, which has to register"
                )
            return caller
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

    async def _by_worker_token(self, known: str, *, remembered: bool) -> Caller:
        if remembered and (caller := self.workers.fresh(known)) is not None:
            return caller
        if self._store.away and (caller := self.workers.last(known)) is not None:
            return caller
        worker = await self._store.workers.by_token_digest(known)
        if worker is None:
            self.workers.drop(known)
            raise UnknownWorker("this worker's token is not known here; it has to register again")
        caller = Caller(
            via=Via.WORKER,
            worker_id=worker.id,
            worker_version=worker.version,
            worker_session=worker.session,
            username=worker.name,
        )
        self.workers.note(known, caller)
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


def _session_number(scope: Mapping[str, Any]) -> int | None:
    """Return which start of a worker makes the request; None when it does not say."""
    said = header(scope, _SESSION)
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None


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
        caller = await _authenticator(connection).caller(
            connection.scope, remembered=bool(handler.opt.get("many"))
        )
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
        # Of a fleet's watches many ask each second; a worker that was removed is forgotten by its event.
        caller = await _authenticator(connection).caller(connection.scope, remembered=True)
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
