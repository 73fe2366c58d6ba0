"""Signed-in browsers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpustack.db.connection import Session, Writing
from gpustack.db.errors import conflicts
from gpustack.db.outbox import Change
from gpustack.db.repositories.base import narrowed, now, sql
from gpustack.db.repositories.users import Users
from gpustack.db.tables import LoginSession
from gpustack.schemas.common import EventType
from gpustack.schemas.users import UserPublic

_TOPIC = "sessions"
_PRINCIPALS = (
    "SELECT s.id, s.digest, s.user_id, u.username, u.is_admin, s.expires_at "
    "FROM sessions s JOIN users u ON u.id = s.user_id WHERE u.is_active AND s.expires_at > {}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session as a principal."""

    id: int
    digest: str
    user_id: int
    username: str
    is_admin: bool
    expires_at: datetime


class Sessions:
    """Sessions by the digest of their token. Their events say no more than that one began or ended."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._users = Users(session)

    async def create(self, user_id: int, digest: str, expires_at: datetime) -> int:
        """Remember a session until ``expires_at``, and forget those that are over; NotFound without the user.

        Returns its number.
        """
        moment = now()
        row = LoginSession(user_id=user_id, digest=digest, expires_at=expires_at, created_at=moment)
        gone = {"sessions_user_id_fkey": f"there is no user {user_id}"}
        with conflicts({"sessions_digest_key": "the session exists already"}, gone):
            async with self._session.writing() as tx:
                # Those that are over count for nobody, so nobody has to be told.
                await tx.fetch(LoginSession.delete().where(LoginSession.expires_at <= moment))
                (made,) = await tx.fetch(LoginSession.insert(row).returning(LoginSession.id))
                _tell(tx, EventType.CREATED, made["id"])
                return int(made["id"])

    async def user_by_digest(self, digest: str) -> UserPublic | None:
        """Return the active user whose session this is; None when it is unknown or over."""
        current = sql("SELECT user_id FROM sessions WHERE digest = {} AND expires_at > {}", digest, now())
        return await self._users.active_of(current)

    async def delete(self, digest: str) -> list[int]:
        """End a session and return its number, if there was one; ending one that is gone is fine."""
        return await self._end(LoginSession.delete().where(LoginSession.digest == digest))

    async def delete_of_user(self, user_id: int, *, except_digest: str | None = None) -> list[int]:
        """End all sessions of a user, but for the one that asks, and return their numbers."""
        query = LoginSession.delete().where(LoginSession.user_id == user_id)
        if except_digest is not None:
            query = query.where(LoginSession.digest != except_digest)
        return await self._end(query)

    async def principals(
        self, *, sessions: Collection[int] | None = None, user_id: int | None = None
    ) -> list[SessionRow]:
        """Return every session that counts now, of active users; with ``sessions`` or ``user_id`` those of them."""
        if sessions is not None and not sessions:
            return []
        query = narrowed(_PRINCIPALS, [now()], ("s.id", sessions), ("s.user_id", user_id))
        return [SessionRow(**dict(row)) for row in await self._session.fetch(query)]

    async def _end(self, query: Any) -> list[int]:
        async with self._session.writing() as tx:
            ended = [int(row["id"]) for row in await tx.fetch(query.returning(LoginSession.id))]
            for number in ended:
                _tell(tx, EventType.DELETED, number)
            return ended


def _tell(tx: Writing, kind: EventType, number: int) -> None:
    tx.emit(Change(_TOPIC, kind, number, "{}", {}))
