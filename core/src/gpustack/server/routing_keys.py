"""The principals of the table by the digests of their credentials, brought up to date a key or a user at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gpustack.db import KeyRow
from gpustack.plugin.routing import Principal


def principal_of(key: KeyRow) -> Principal:
    """Return the principal behind an API key."""
    return Principal(
        user_id=key.user_id,
        username=key.username,
        is_admin=key.is_admin,
        key_id=key.id,
        allowed=frozenset(key.allowed_model_names) or None,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
    )


class Principals:
    """Knows the keys of each user, so that a change concerns only those.

    What changes returns the digests that are new, others or gone. Principals that are equal stay the same objects.
    """

    def __init__(self) -> None:
        #: Changed in place.
        self.by_digest: dict[str, Principal] = {}
        self._fixed: dict[str, Principal] = {}
        self._digests: dict[int, str] = {}
        self._keys_of: dict[int, set[int]] = {}

    def add_fixed(self, digest: str, principal: Principal) -> set[str]:
        """Know a credential that is in no database; no key takes its place."""
        self._fixed[digest] = self.by_digest[digest] = principal
        return {digest}

    def replace(self, rows: Iterable[KeyRow]) -> None:
        """Take all keys anew. The mapping is another one afterwards; principals that are equal stay."""
        before = self.by_digest
        self.by_digest, self._digests, self._keys_of = {}, {}, {}
        for row in rows:
            new, old = principal_of(row), before.get(row.digest)
            self._know(row, old if old is not None and old == new else new)
        self.by_digest |= self._fixed

    def of_user(self, user_id: int) -> set[int]:
        """Return the keys of a user that are known."""
        return set(self._keys_of.get(user_id, ()))

    def update(self, keys: Collection[int], rows: Iterable[KeyRow]) -> set[str]:
        """Take in what is so of ``keys`` now: ``rows`` are those of them, or more, that may be used."""
        touched: set[str] = set()
        left = set(keys)
        for row in rows:
            left.discard(row.id)
            touched |= self._put(row)
        for key in left:
            touched |= self._forget(key)
        return touched

    def _put(self, row: KeyRow) -> set[str]:
        digest, new = self._digests.get(row.id), principal_of(row)
        if digest == row.digest and self.by_digest.get(digest) == new:
            return set()
        touched = self._forget(row.id) if digest not in (None, row.digest) else set()
        self._know(row, new)
        return touched | {row.digest}

    def _know(self, row: KeyRow, principal: Principal) -> None:
        if row.digest not in self._fixed:
            self.by_digest[row.digest] = principal
        self._digests[row.id] = row.digest
        self._keys_of.setdefault(row.user_id, set()).add(row.id)

    def _forget(self, key: int) -> set[str]:
        digest = self._digests.pop(key, None)
        if digest is None or digest in self._fixed:
            return set()
        user_id = self.by_digest.pop(digest).user_id
        held = self._keys_of.get(user_id or 0, set())
        held.discard(key)
        if not held:
            self._keys_of.pop(user_id or 0, None)
        return {digest}
