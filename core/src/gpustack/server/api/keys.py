"""``/v2/api-keys``: keys of the caller's own."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from gpustack.kit.errors import Forbidden, NotFound
from gpustack.plugin.routing import digest
from gpustack.schemas import ApiKeyCreate, ApiKeyCreated, ApiKeyPublic, Page
from gpustack.server.api.listing import Select, listed
from gpustack.server.auth.caller import Access, Caller, Req
from gpustack.server.body import Body, one
from gpustack.server.services import services

_USER = {"access": Access.USER}


def new_key() -> tuple[str, str]:
    """Return the readable first part of a new key, and its whole text."""
    access = secrets.token_hex(8)
    return access, f"gpustack_{access}_{secrets.token_hex(16)}"


@get("/api-keys", opt=_USER, tags=["API keys"])
async def list_keys(request: Req, selection: Select) -> Response[Page[ApiKeyPublic]]:
    """List the caller's keys, without their secrets."""
    return await listed(
        request,
        services(request).store.api_keys,
        selection,
        topic="api-keys",
        filters={"user_id": request.user.user_id},
    )


@get("/api-keys/{key_id:int}", opt=_USER, tags=["API keys"])
async def get_key(request: Req, key_id: FromPath[int]) -> Response[ApiKeyPublic]:
    """Return one of the caller's keys, without its secret."""
    return one(await _own(request, key_id))


@post("/api-keys", opt=_USER, dto=Body[ApiKeyCreate], tags=["API keys"])
async def create_key(request: Req, data: JSONBody[ApiKeyCreate]) -> Response[ApiKeyCreated]:
    """Make a key. ``value`` is its text, shown this once and kept nowhere."""
    parts = services(request)
    access, text = new_key()
    expires = datetime.now(UTC) + timedelta(seconds=data.expires_in) if data.expires_in else None
    _check_expiry(request.user, expires)
    key = await parts.store.api_keys.create(request.user.user_id, data, access, digest(text), expires)
    await parts.routing.refresh_keys({key.id})  # so that the key works as soon as it is known
    return one(ApiKeyCreated(**key.model_dump(), value=text), status=201)


@delete("/api-keys/{key_id:int}", opt=_USER, tags=["API keys"])
async def delete_key(request: Req, key_id: FromPath[int], close_streams: FromQuery[bool] = False) -> None:
    """Revoke a key at once; ``close_streams`` also ends the answers that it is getting just now."""
    parts = services(request)
    await _own(request, key_id)
    await parts.store.api_keys.delete(key_id)
    await parts.routing.forget_keys({key_id}, close=close_streams)


def _check_expiry(caller: Caller, expires: datetime | None) -> None:
    """Let no key outlive, by way of another one, the time that it was given."""
    if caller.expires_at is None or (expires is not None and expires.timestamp() <= caller.expires_at):
        return
    left = max(0, int(caller.expires_at - time.time()))
    raise Forbidden(
        f"an API key may not make one that outlives it; give expires_in, at most {left}, or sign in with the password"
    )


async def _own(request: Req, key_id: int) -> ApiKeyPublic:
    key = await services(request).store.api_keys.get(key_id)
    if key.user_id != request.user.user_id:
        raise NotFound(f"there is no API key {key_id}")
    return key


HANDLERS = [list_keys, get_key, create_key, delete_key]
