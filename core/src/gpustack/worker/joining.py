"""Getting a worker registered: the first time with the registration token, from then on with its own credential."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from gpustack.client import Client
from gpustack.client.transport import Stranger
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import (
    Conflict,
    Forbidden,
    GPUStackError,
    InvalidInput,
    NotFound,
    Refused,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from gpustack.kit.logs import TELL
from gpustack.schemas import WorkerRegistered, WorkerRegistration
from gpustack.worker.config import WorkerConfig
from gpustack.worker.identity import Identity

log = logging.getLogger(__name__)

#: Seconds between two lines about the same obstacle, and before the first: a server that just starts is none.
_EVERY, _FIRST = 60.0, 2.0
_COMMAND = "`gpustack workers join-command` on the server's machine prints the whole command"
_WAYS = (
    "give it by --token-file PATH, by the variable GPUSTACK_TOKEN, or by token or token_file in the file of "
    f"--config-file; {_COMMAND}"
)


class Joining:
    """Registers the worker, again whenever the server has forgotten it."""

    def __init__(self, config: WorkerConfig, identity: Identity) -> None:
        self._config = config
        self._identity = identity
        #: The server has taken this worker in before, or even this process. Its engines serve, whatever the server
        #: says now: it may be restored, upgraded, or behind a proxy that refuses for a moment.
        self._joined, self._served = bool(identity.credential), False
        #: The own credential is tried until the server does not know it.
        self._try_own = True
        self._told = 0.0
        self._obstacle_since: float | None = None
        self._conflict_since: float | None = None

    async def join(self, describe: Callable[[], Awaitable[WorkerRegistration]]) -> WorkerRegistered:
        """Register, however long that takes; ``describe`` says anew what is registered, at each attempt.

        The credential is kept. Raises Refused, if the configuration says so, when the server has never taken this
        worker and will not until a person changes something.
        """
        self._obstacle_since = self._conflict_since = None
        self._try_own = True
        wait = Backoff(first=0.2, limit=15.0)
        async with Client(self._config.server_url) as client:
            while True:
                client.credential = self._credential()
                try:
                    worker = await client.register_worker(await self._proven(client, await describe()))
                except GPUStackError as error:
                    if await self._judge(error):
                        continue
                else:
                    await asyncio.to_thread(self._identity.keep, worker.token)
                    self._joined = self._served = True
                    return worker
                await asyncio.sleep(wait.next())

    async def _proven(self, client: Client, registration: WorkerRegistration) -> WorkerRegistration:
        """Return the registration with the proof of this worker's key; as it is for a server that asks for none."""
        try:
            challenge = await client.worker_challenge()
        except NotFound:
            return registration
        return self._identity.prove(registration, challenge)

    def _credential(self) -> str:
        """Return what to show this time."""
        if self._own():
            return self._identity.credential
        if not self._config.registration_token:
            self._refuse(f"this worker has no token to join {self._config.server_url}: {_WAYS}")
        return self._config.registration_token

    def _own(self) -> bool:
        return self._try_own and bool(self._identity.credential)

    async def _judge(self, error: GPUStackError) -> bool:
        """Decide what follows from a failure: True to try again at once, False to wait. Raises Refused."""
        url = self._config.server_url
        match error:
            case Unavailable() | Throttled():
                self._note(f"cannot join {url} yet, trying on: {error}")
            case Unauthenticated() | Forbidden() if self._own():
                self._try_own = False
                log.warning("the server at %s does not take this worker's own credential: %s", url, error)
                if not self._config.registration_token:
                    self._refuse(
                        f"the server at {url} does not know this worker any more ({error}), and there is no token to "
                        f"join again: {_WAYS}"
                    )
                    return False
                return True
            case Unauthenticated() | Forbidden():
                self._refuse(
                    f"the server at {url} does not accept the token ({error}); it is in the file `token` of the "
                    f"server's data directory, and {_COMMAND}"
                )
            case Conflict():
                return await self._of_another(error)
            case InvalidInput():
                self._refuse(f"the server at {url} does not take this worker: {error}")
            case Stranger() if not self._own():
                self._refuse(f"{error}; check --server-url")
            case _:
                self._note(f"cannot join {url} yet, trying on: {error}")
        return False

    async def _of_another(self, error: Conflict) -> bool:
        """Wait while the other may only just have ended; one that goes on for longer is another worker for good."""
        now = time.monotonic()
        if self._conflict_since is None:
            self._conflict_since = now
            log.warning("%s; waiting to see whether it ends", error, extra=TELL)
        if now - self._conflict_since < self._config.conflict_patience:
            return False
        self._conflict_since = None
        if not self._config.registration_token:
            self._refuse(f"{error} Here it can only join as a new worker, with the token: {_WAYS}", copy=True)
            return False
        await asyncio.to_thread(self._identity.become_another)
        log.warning("%s Joining as a new worker instead, with a key of its own", error, extra=TELL)
        return True

    def _refuse(self, line: str, *, copy: bool = False) -> None:
        """End this worker with ``line``; one that has served stays, and one whose server is its own.

        What a ``copy`` of another worker's data directory says of earlier days is the other's.
        """
        if self._config.remote and not (self._served or (self._joined and not copy)):
            raise Refused(line)
        self._try_own = True
        self._note(line)

    def _note(self, line: str) -> None:
        """Say what is in the way, once it has been for a moment, and then now and again."""
        now = time.monotonic()
        if self._obstacle_since is None:
            self._obstacle_since, self._told = now, now - _EVERY + _FIRST
        if now - self._told >= _EVERY:
            self._told = now
            log.warning("%s", line, extra=TELL)
        else:
            log.debug("%s", line)
