"""The principals of the table by the digests of their credentials, brought up to date a credential or a user at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, TypeAlias

from gpustack.db import KeyRow, SessionRow
from gpustack.plugin.routing import Principal, of_session

Row: TypeAlias = KeyRow | SessionRow
#: A key, or the session of a browser, by its number.
Handle: TypeAlias = tuple[Literal["key", "session"], int]


def handle_of(row: Row) -> Handle:
    """Return which credential it is."""
    return ("session" if isinstance(row, SessionRow) else "key", row.id)


def _digest_of(row: Row) -> str:
    return of_session(row.digest) if isinstance(row, SessionRow) else row.digest


def principal_of(row: Row) -> Principal:
    """Return the principal behind an API key or a session."""
    if isinstance(row, SessionRow):
        return Principal(
            user_id=row.user_id,
            username=row.username,
            is_admin=row.is_admin,
            expires_at=row.expires_at.timestamp(),
        )
    key = row
    return Principal(
        user_id=key.user_id,
        username=key.username,
        is_admin=key.is_admin,
        key_id=key.id,
        allowed=frozenset(key.allowed_model_names) or None,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
    )


class Principals:
    """Knows the keys and sessions of each user, so that a change concerns only those.

    What changes returns the digests that are new, others or gone. Principals that are equal stay the same objects.
    """

    def __init__(self) -> None:
        #: Changed in place.
        self.by_digest: dict[str, Principal] = {}
        self._fixed: dict[str, Principal] = {}
        self._digests: dict[Handle, str] = {}
        self._held_by: dict[int, set[Handle]] = {}

    def add_fixed(self, digest: str, principal: Principal) -> set[str]:
        """Know a credential that is in no database; no key takes its place."""
        self._fixed[digest] = self.by_digest[digest] = principal
        return {digest}

    def replace(self, rows: Iterable[Row]) -> None:
        """Take all of them anew. The mapping is another one afterwards; principals that are equal stay."""
        before = self.by_digest
        self.by_digest, self._digests, self._held_by = {}, {}, {}
        for row in rows:
            new, old = principal_of(row), before.get(_digest_of(row))
            self._know(row, old if old is not None and old == new else new)
        self.by_digest |= self._fixed

    def of_user(self, user_id: int) -> set[Handle]:
        """Return what is known of a user's."""
        return set(self._held_by.get(user_id, ()))

    def sessions_over(self, now: float) -> set[Handle]:
        """Return the sessions that are over at ``now``, in seconds since the epoch; nobody tells of their end."""
        return {
            handle
            for handle, digest in self._digests.items()
            if handle[0] == "session" and digest in self.by_digest and self.by_digest[digest].expired(now)
        }

    def update(self, handles: Collection[Handle], rows: Iterable[Row]) -> set[str]:
        """Take in what is so of ``handles`` now: ``rows`` are those of them, or more, that may be used."""
        touched: set[str] = set()
        left = set(handles)
        for row in rows:
            left.discard(handle_of(row))
            touched |= self._put(row)
        for handle in left:
            touched |= self._forget(handle)
        return touched

    def _put(self, row: Row) -> set[str]:
        handle, wanted = handle_of(row), _digest_of(row)
        digest, new = self._digests.get(handle), principal_of(row)
        if digest == wanted and self.by_digest.get(digest) == new:
            return set()
        touched = self._forget(handle) if digest not in (None, wanted) else set()
        self._know(row, new)
        return touched | {wanted}

    def _know(self, row: Row, principal: Principal) -> None:
        handle, digest = handle_of(row), _digest_of(row)
        if digest not in self._fixed:
            self.by_digest[digest] = principal
        self._digests[handle] = digest
        self._held_by.setdefault(row.user_id, set()).add(handle)

    def _forget(self, handle: Handle) -> set[str]:
        digest = self._digests.pop(handle, None)
        if digest is None or digest in self._fixed:
            return set()
        user_id = self.by_digest.pop(digest).user_id
        held = self._held_by.get(user_id or 0, set())
        held.discard(handle)
        if not held:
            self._held_by.pop(user_id or 0, None)
        return {digest}
