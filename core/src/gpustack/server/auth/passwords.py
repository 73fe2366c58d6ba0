"""Password hashes: argon2id in a thread, a few at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gpustack.kit.errors import Throttled

if TYPE_CHECKING:
    from argon2 import PasswordHasher

#: Checks at once, and others that may wait for their turn. Each takes 19 MiB and a few hundredths of a second.
_AT_ONCE = 2
_WAITING = 16


def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    # The second of the settings that OWASP recommends: 19 MiB, two passes, one lane.
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def hash_now(password: str) -> str:
    """Return the hash to store. Blocks for a few hundredths of a second."""
    return _hasher().hash(password)


class Passwords:
    """Checks and hashes passwords without holding up the event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """Return the hash to store."""
        async with self._turn:
            return await asyncio.to_thread(hash_now, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Tell whether ``password`` belongs to the hash ``stored``; None (no such user) takes as long and is False.

        Raises Throttled when too many wait already.
        """
        if self._waiting >= _WAITING:
            raise Throttled("too many sign-ins at once; try again in a moment", retry_after=2)
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(self._verify, stored, password)
        finally:
            self._waiting -= 1

    def _verify(self, stored: str | None, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        if self._nobody is None:
            self._nobody = hash_now("nobody has this password")
        try:
            _hasher().verify(stored or self._nobody, password)
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None
