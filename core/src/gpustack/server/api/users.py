"""``/v2/users/me``: the caller."""

from __future__ import annotations

from litestar import Response, get, put
from litestar.params import JSONBody

from gpustack.schemas import UserPublic, UserSelfUpdate
from gpustack.server.auth.caller import Access, Req
from gpustack.server.body import Body, one
from gpustack.server.services import services


@get("/users/me", opt={"access": Access.USER}, tags=["Users"])
async def get_me(request: Req) -> Response[UserPublic]:
    """Return the user who makes the request."""
    return one(await services(request).store.users.get(request.user.user_id))


@put("/users/me", opt={"access": Access.USER}, dto=Body[UserSelfUpdate], tags=["Users"])
async def put_me(request: Req, data: JSONBody[UserSelfUpdate]) -> Response[UserPublic]:
    """Change what users may change about themselves."""
    return one(await services(request).store.users.update(request.user.user_id, full_name=data.full_name))


HANDLERS = [get_me, put_me]
