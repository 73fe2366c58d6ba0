"""Signing in and out with a password."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from litestar import Response, Router, post
from litestar.datastructures import Cookie
from litestar.params import JSONBody
from pydantic import ValidationError

from gpustack.db import UserRow
from gpustack.kit.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from gpustack.plugin.routing import digest
from gpustack.schemas import Login, LoginReply, PasswordChange, PasswordReset, PasswordResetReply
from gpustack.server.auth.authenticate import COOKIE, check_origin, session_token
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import Body, nothing, one
from gpustack.server.config import ADMIN, FIRST_LOGIN_FILE
from gpustack.server.errors import invalid
from gpustack.server.services import Services, services

SESSION = timedelta(minutes=120)
_T = TypeVar("_T")


@post("/login", opt={"access": Access.PUBLIC}, status_code=200)
async def login(request: Req) -> Response[LoginReply]:
    """Sign in with a form (or JSON object) of username and password; the session comes as a cookie."""
    check_origin(request.scope)
    form = await _form(request)
    parts = services(request)
    address = request.client.host if request.client else ""
    by_user = (form.username, address)
    with contextlib.ExitStack() as attempts:
        attempts.enter_context(parts.by_user.attempt(by_user, Unauthenticated))
        if not is_loopback(address):  # behind a proxy on this machine everybody has that address
            attempts.enter_context(parts.by_address.attempt(address, Unauthenticated))
        user = await _with_password(parts, form)
    parts.by_user.succeeded(by_user)
    token = secrets.token_urlsafe(32)
    number = await parts.store.sessions.create(user.id, digest(token), datetime.now(UTC) + SESSION)
    # Its event says so as well, a moment later.
    await parts.routing.refresh_session(number)
    reply = LoginReply(
        username=user.username, is_admin=user.is_admin, require_password_change=user.require_password_change
    )
    return _with_cookie(one(reply), request, token, int(SESSION.total_seconds()))


@post("/logout", opt={"access": Access.PUBLIC}, status_code=200)
async def logout(request: Req) -> Response[dict[str, str | None]]:
    """End the session of the cookie, if there is one."""
    if token := session_token(request.scope):
        check_origin(request.scope)
        parts = services(request)
        await parts.routing.forget_sessions(await parts.store.sessions.delete(digest(token)))
    return _with_cookie(Response({"logout_url": None}), request, "", 0)


@post("/update-password", opt={"access": Access.USER}, dto=Body[PasswordChange], status_code=204)
async def update_password(request: Req, data: JSONBody[PasswordChange]) -> Response[None]:
    """Change one's own password; all other sessions of this user end."""
    caller, parts = request.user, services(request)
    key = ("change", caller.user_id)
    with parts.by_user.attempt(key, InvalidInput):
        user = await parts.store.users.by_name(caller.username)
        if not await parts.passwords.verify(user.password_hash, data.current_password.get_secret_value()):
            raise InvalidInput("current_password: is wrong")
    parts.by_user.succeeded(key)
    if data.new_password.get_secret_value() == data.current_password.get_secret_value():
        raise InvalidInput("new_password: is the same as the current one")
    await _change(parts, caller.user_id, data.new_password.get_secret_value(), caller.session or None)
    return nothing()


@post("/reset-admin-password", opt={"access": Access.ADMIN}, dto=Body[PasswordReset], status_code=200)
async def reset_admin_password(request: Req, data: JSONBody[PasswordReset]) -> Response[PasswordResetReply]:
    """Give the first administrator a new password; only for whoever may read the server's data directory."""
    if request.user.via is not Via.LOCAL:
        raise Forbidden("only `gpustack reset-admin-password` on the server's own machine may do this")
    parts = services(request)
    given = data.new_password
    password = secrets.token_urlsafe(12) if given is None else given.get_secret_value()
    admin = await parts.store.users.by_name(ADMIN)
    await _change(parts, admin.id, password, None)
    return one(PasswordResetReply(username=ADMIN, password=password))


async def _change(parts: Services, user_id: int, password: str, keep: str | None) -> None:
    hashed = await parts.passwords.hash(password)
    async with parts.store.transaction() as tx:
        await tx.users.set_password(user_id, hashed)
        ended = await tx.sessions.delete_of_user(user_id, except_digest=keep)
    await parts.routing.forget_sessions(ended)
    if user_id == (await parts.store.users.by_name(ADMIN)).id:
        # What the file says is not true any more.
        first = parts.config.data_dir / FIRST_LOGIN_FILE
        await asyncio.to_thread(first.unlink, missing_ok=True)


async def _with_password(parts: Services, form: Login) -> UserRow:
    """Return the user who signs in. Unauthenticated, in the same words and time, whatever is wrong."""
    try:
        user = await parts.store.users.by_name(form.username)
    except NotFound:
        user = None
    stored = user.password_hash if user else None
    right = await parts.passwords.verify(stored, form.password.get_secret_value())
    if user is None or not right or not user.is_active:
        raise Unauthenticated("the user name or the password is wrong")
    return user


def is_loopback(address: str) -> bool:
    """Tell whether a peer is on this machine."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def _form(request: Req) -> Login:
    kind = request.content_type[0]
    try:
        if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
            return Login.model_validate(dict((await request.form()).items()))
        return Login.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error) from None


def _with_cookie(response: Response[_T], request: Req, value: str, max_age: int) -> Response[_T]:
    response.set_cookie(
        Cookie(
            key=COOKIE,
            value=value,
            max_age=max_age,
            path="/",
            httponly=True,
            samesite="lax",
            secure=request.scope["scheme"] == "https",
        )
    )
    return response


ROUTER = Router(
    path="/auth",
    route_handlers=[login, logout, update_password, reset_admin_password],
    tags=["Authentication"],
)
