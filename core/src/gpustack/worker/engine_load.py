"""How full the KV caches of this worker's engines are, as their backends read it from what the engines say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NoReturn

from gpustack.kit.errors import GPUStackError
from gpustack.schemas import ModelInstancePublic
from gpustack.worker.desk import Desk
from gpustack.worker.probe import fetch

log = logging.getLogger(__name__)

#: Seconds that an engine has for its answer.
_PATIENCE = 2.0
#: Engines that are asked at the same time.
_AT_ONCE = 16


class EngineLoads:
    """Asks the engines that serve, every so often; ``caches`` is what they said last, by instance."""

    def __init__(self, desk: Desk, serving: Callable[[], Sequence[ModelInstancePublic]]) -> None:
        self._desk = desk
        self._serving = serving
        self._turn = asyncio.Semaphore(_AT_ONCE)
        #: Backends that said something wrong: told once.
        self._told: set[str] = set()
        self.caches: dict[int, float] = {}

    async def keep(self, every: float) -> NoReturn:
        """Ask all engines every so many seconds."""
        while True:
            await asyncio.sleep(every)
            await self.look()

    async def look(self) -> None:
        """Ask all engines once."""
        found = await asyncio.gather(*(self._ask(each) for each in self._serving()))
        self.caches = {number: used for number, used in found if used is not None}

    async def _ask(self, instance: ModelInstancePublic) -> tuple[int, float | None]:
        assert instance.port is not None
        async with self._turn:
            try:
                path = await self._desk.load_path(instance)
                answer = await fetch(instance.port, path, timeout=_PATIENCE) if path else None
                used = await self._desk.kv_cache_use(instance, answer) if answer is not None else None
            except GPUStackError as error:
                if instance.backend not in self._told:
                    self._told.add(instance.backend)
                    log.warning(
                        "backend %s: how full the KV cache is cannot be told: %s", instance.backend, error
                    )
                used = None
        return instance.id, used
