"""API keys."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, narrowed, now
from gpustack.db.tables import ApiKey
from gpustack.schemas.common import Page
from gpustack.schemas.keys import ApiKeyCreate, ApiKeyPublic


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key as a principal. ``expires_at`` None is never; no ``allowed_model_names`` allows all models."""

    id: int
    digest: str
    user_id: int
    username: str
    is_admin: bool
    allowed_model_names: tuple[str, ...]
    expires_at: datetime | None


#: Inside the class below, `list` is the method.
_KeyRows = list[KeyRow]

_PRINCIPALS = (
    "SELECT k.id, k.digest, k.user_id, u.username, u.is_admin, k.allowed_model_names, k.expires_at "
    "FROM api_keys k JOIN users u ON u.id = k.user_id "
    "WHERE u.is_active AND (k.expires_at IS NULL OR k.expires_at > {})"
)


class ApiKeys(Repository[ApiKeyPublic]):
    """Keys, by the digest of their secret."""

    table = ApiKey
    public = ApiKeyPublic
    noun = "API key"
    topic = "api-keys"
    sortable = frozenset({"id", "name", "created_at", "updated_at", "expires_at", "access_key"})

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        user_id: int | None = None,
    ) -> Page[ApiKeyPublic]:
        """Return one page; ``page`` -1 is everything."""
        return await self._page(page, per_page, search, sort_by, {"user_id": user_id})

    async def create(
        self, user_id: int, wanted: ApiKeyCreate, access_key: str, digest: str, expires_at: datetime | None
    ) -> ApiKeyPublic:
        """Add a key of a user; Conflict when that user has one of this name."""
        values = {
            "user_id": user_id,
            "name": wanted.name,
            "description": wanted.description,
            "allowed_model_names": wanted.allowed_model_names,
            "access_key": access_key,
            "digest": digest,
            "expires_at": expires_at,
        }
        taken = f"you have an API key named {wanted.name!r} already; choose another name or remove that one"
        gone = {"api_keys_user_id_fkey": f"there is no user {user_id}"}
        with conflicts({"api_keys_user_id_name_key": taken}, gone):
            async with self._session.writing() as tx:
                return await self._insert(tx, values)

    async def delete(self, key_id: int) -> ApiKeyPublic:
        """Remove a key and return what it was."""
        async with self._session.writing() as tx:
            key = await self._get(tx, key_id, lock=True)
            await self._remove(tx, [key])
            return key

    async def principals(
        self, *, keys: Collection[int] | None = None, user_id: int | None = None
    ) -> _KeyRows:
        """Return every key that is valid now, of active users; with ``keys`` or ``user_id`` those of them.

        Of ``keys`` there may be some thousands.
        """
        if keys is not None and not keys:
            return []
        query = narrowed(_PRINCIPALS, [now()], ("k.id", keys), ("k.user_id", user_id))
        rows = await self._session.fetch(query)
        return [_principal(row) for row in rows]


def _principal(row: Any) -> KeyRow:
    values = dict(row)
    values["allowed_model_names"] = tuple(from_json(values["allowed_model_names"]))
    return KeyRow(**values)
