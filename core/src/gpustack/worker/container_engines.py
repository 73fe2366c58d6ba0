"""Whether engines can run in containers on this machine, as the server is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gpustack.schemas import ContainerEngineStatus
from gpustack.worker.runners import daemon
from gpustack.worker.runners.daemon import NoContainerEngine

#: Seconds for which a container engine that answered is not asked again: its answer lists all its containers.
_FRESH = 60.0


class ContainerEngines:
    """Looks for the container engine, rarely where there is one; a single miss is not told of, as it may just be busy."""

    def __init__(
        self,
        find: Callable[[], daemon.Daemon] = daemon.find,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._clock = find, clock
        self._known = ContainerEngineStatus()
        self._again = 0.0
        self._missed = False

    async def look(self) -> ContainerEngineStatus:
        """Return which container engine there is, or why there is none to use."""
        there = bool(self._known.name)
        if there and not self._missed and self._clock() < self._again:
            return self._known
        try:
            found = ContainerEngineStatus(name=(await asyncio.to_thread(self._find)).name)
        except NoContainerEngine as error:
            found = ContainerEngineStatus(reason=error.message)
        if found.reason and there and not self._missed:
            self._missed = True
            return self._known
        self._known, self._missed, self._again = found, False, self._clock() + _FRESH
        return found
