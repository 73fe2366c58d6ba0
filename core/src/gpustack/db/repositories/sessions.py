"""Signed-in browsers."""

from __future__ import annotations

from datetime import datetime

from gpustack.db.connection import Session
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import now, sql
from gpustack.db.repositories.users import Users
from gpustack.db.tables import LoginSession
from gpustack.schemas.users import UserPublic


class Sessions:
    """Sessions by the digest of their token. They write no events."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._users = Users(session)

    async def create(self, user_id: int, digest: str, expires_at: datetime) -> None:
        """Remember a session until ``expires_at``, and forget those that are over; NotFound without the user."""
        moment = now()
        row = LoginSession(user_id=user_id, digest=digest, expires_at=expires_at, created_at=moment)
        gone = {"sessions_user_id_fkey": f"there is no user {user_id}"}
        with conflicts({"sessions_digest_key": "the session exists already"}, gone):
            async with self._session.writing() as tx:
                await tx.fetch(LoginSession.delete().where(LoginSession.expires_at <= moment))
                await tx.fetch(LoginSession.insert(row))

    async def user_by_digest(self, digest: str) -> UserPublic | None:
        """Return the active user whose session this is; None when it is unknown or over."""
        current = sql("SELECT user_id FROM sessions WHERE digest = {} AND expires_at > {}", digest, now())
        return await self._users.active_of(current)

    async def delete(self, digest: str) -> None:
        """End a session; ending one that is gone is fine."""
        await self._session.fetch(LoginSession.delete().where(LoginSession.digest == digest))

    async def delete_of_user(self, user_id: int, *, except_digest: str | None = None) -> None:
        """End all sessions of a user, but for the one that asks."""
        query = LoginSession.delete().where(LoginSession.user_id == user_id)
        if except_digest is not None:
            query = query.where(LoginSession.digest != except_digest)
        await self._session.fetch(query)
