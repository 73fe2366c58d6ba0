"""Users."""

from __future__ import annotations

from dataclasses import dataclass

from piccolo.querystring import QueryString

from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository
from gpustack.db.tables import User
from gpustack.kit.errors import NotFound
from gpustack.schemas.common import Page
from gpustack.schemas.users import UserPublic


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    """A user with the hash of the password; never sent anywhere."""

    id: int
    username: str
    full_name: str
    password_hash: str
    is_admin: bool
    is_active: bool
    require_password_change: bool


class Users(Repository[UserPublic]):
    """Who may sign in."""

    table = User
    public = UserPublic
    noun = "user"
    topic = "users"
    searched = "username"
    sortable = frozenset({"id", "username", "full_name", "is_admin", "created_at", "updated_at"})

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        is_admin: bool | None = None,
        is_active: bool | None = None,
    ) -> Page[UserPublic]:
        """Return one page; ``page`` -1 is everything."""
        return await self._page(
            page, per_page, search, sort_by, {"is_admin": is_admin, "is_active": is_active}
        )

    async def by_name(self, username: str) -> UserRow:
        """Return the user with the password's hash; NotFound when there is none."""
        names = UserRow.__dataclass_fields__
        query = User.select(*(getattr(User, name) for name in names)).where(User.username == username)
        rows = await self._session.fetch(query)
        if not rows:
            raise NotFound(f"there is no user named {username!r}")
        return UserRow(**dict(rows[0]))

    async def active_of(self, ids: QueryString) -> UserPublic | None:
        """Return the active user whose id the statement ``ids`` selects; None when there is none."""
        found = await self._find(self._session, User.is_active.eq(True), User.id.is_in(ids))
        return found[0] if found else None

    async def create(
        self,
        username: str,
        password_hash: str,
        *,
        full_name: str = "",
        is_admin: bool = False,
        require_password_change: bool = False,
    ) -> UserPublic:
        """Add a user; Conflict when the name is taken."""
        values = {
            "username": username,
            "password_hash": password_hash,
            "full_name": full_name,
            "is_admin": is_admin,
            "require_password_change": require_password_change,
            "is_active": True,
            "source": "Local",
        }
        taken = {"users_username_key": f"a user named {username!r} exists already; choose another name"}
        with conflicts(taken):
            async with self._session.writing() as tx:
                return await self._insert(tx, values)

    async def set_password(
        self, user_id: int, password_hash: str, *, require_change: bool = False
    ) -> UserPublic:
        """Store the hash of a new password."""
        async with self._session.writing() as tx:
            old = await self._get(tx, user_id, lock=True)
            values = {"password_hash": password_hash, "require_password_change": require_change}
            return await self._change(tx, old, values)

    async def update(self, user_id: int, *, full_name: str) -> UserPublic:
        """Change what users may change about themselves."""
        async with self._session.writing() as tx:
            return await self._change(tx, await self._get(tx, user_id, lock=True), {"full_name": full_name})
