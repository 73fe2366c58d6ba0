"""Challenges for workers that prove who they are: given out without being remembered, and checked by any server that
has the same registration token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.kit.signing import bytes_of, text_of, verified
from gpustack.schemas import WorkerRegistration

#: Seconds in which a registration may use one; measuring a machine is done before.
LIFETIME = 120
_TIME, _RANDOM, _MARK = 8, 16, 16


class Challenges:
    """Makes challenges and checks what was signed. ``clock`` is this server's; a worker's own does not matter."""

    def __init__(self, secret: str, *, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.sha256(b"gpustack worker challenges\0" + secret.encode()).digest()
        self._clock = clock

    def make(self) -> str:
        """Return a new challenge."""
        body = int(self._clock()).to_bytes(_TIME, "big") + secrets.token_bytes(_RANDOM)
        return text_of(body + self._mark(body))

    def check(self, registration: WorkerRegistration) -> None:
        """Return when the registration has no proof, or a good one.

        Raises InvalidInput for a signature that is none, and Unavailable, which has the worker ask for another
        challenge, when this one is over or another server's.
        """
        proof = registration.proof
        if proof is None:
            return
        if not self._fresh(proof.challenge):
            raise Unavailable(
                f"the challenge is over: it counts for {LIFETIME} s; ask for another", retry_after=0.0
            )
        if not verified(proof.public_key, registration.signed(proof.challenge), proof.signature):
            raise InvalidInput("the registration is not signed by the key that it names")

    def _fresh(self, challenge: str) -> bool:
        try:
            value = bytes_of(challenge)
        except ValueError:
            return False
        body, mark = value[: _TIME + _RANDOM], value[_TIME + _RANDOM :]
        if not hmac.compare_digest(mark, self._mark(body)):
            return False
        age = self._clock() - int.from_bytes(body[:_TIME], "big")
        # Another server's clock may be a little ahead.
        return -LIFETIME <= age <= LIFETIME

    def _mark(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()[:_MARK]
