"""The database as one of the supervisor's units: the embedded one, or somebody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, system_line

#: Seconds of running after which earlier deaths are forgiven.
_STABLE = 30.0


class DatabaseUnit:
    """Keeps the embedded PostgreSQL running; has nothing to do when ``url`` names another database."""

    name = "postgres"

    def __init__(
        self,
        url: str,
        data_dir: Path,
        log_dir: Path,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._external = url
        self._say = say
        self._changed = changed
        self._data_dir, self._log_dir = data_dir, log_dir
        self._postgres: Any = None
        self._up = asyncio.Event()
        self._state = "starting"
        self._restarts = 0

    async def run(self) -> None:
        """Prepare and start the database, and start it again whenever it dies."""
        if self._external:
            self._up.set()
            await asyncio.Event().wait()
        from gpustack.db.embedded import EmbeddedPostgres

        self._postgres = EmbeddedPostgres(self._data_dir, self._log_dir)
        await self._postgres.prepare()
        await self._postgres.start()
        backoff = Backoff(first=0.1, limit=10.0)
        while True:
            self._set("ready")
            self._up.set()
            began = time.monotonic()
            why = await self._postgres.wait()
            if time.monotonic() - began > _STABLE:
                backoff.reset()
            await self._again(why, backoff)

    async def _again(self, why: str, backoff: Backoff) -> None:
        """Start it after it died, however often that takes: the rest of the house waits for it."""
        said = ""
        while True:
            wait = backoff.next()
            if why != said:
                again = "starting it again in" if not said else "trying on, next in"
                self._say(f"postgres: {why}; {again} {wait:.1f} s")
                said = why
            self._set("restarting")
            await asyncio.sleep(wait)
            self._restarts += 1
            try:
                await self._postgres.start()
            except GPUStackError as error:
                why = error.message
            except OSError as error:
                why = system_line(error)
            else:
                return

    async def ready(self) -> None:
        """Return once the database has answered for the first time."""
        await self._up.wait()

    async def url(self) -> str:
        """Return the URL to reach it, once it answers."""
        await self._up.wait()
        return self._external or str(self._postgres.url)

    def describe(self) -> dict[str, Any]:
        """Return the state as ``gpustack status`` shows it; nothing for somebody else's database."""
        if self._external:
            return {}
        return {"pid": getattr(self._postgres, "pid", None), "state": self._state, "restarts": self._restarts}

    async def stop(self, grace: float) -> None:
        """End the embedded database, giving it ``grace`` seconds to do so by itself."""
        if self._postgres is not None:
            await self._postgres.stop(grace=grace)
            self._set("stopped")

    def _set(self, state: str) -> None:
        self._state = state
        self._changed()
