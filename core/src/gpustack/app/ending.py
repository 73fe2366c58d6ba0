"""How the supervisor's units end: in the order in which they need each other, and in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any

from gpustack.app.children import PythonChild, Unit

#: Seconds that each gets to end by itself, in this order; together under 10, even if all of them hang.
#: Server and door go first, while engines still answer what is in flight; what they need goes after them.
SERVER_GRACE = 4.0
WORKER_GRACE = 1.0
ENGINE_GRACE = 2.0
DATABASE_GRACE = 1.0


class Ending:
    """The end of ``units``, whose ``tasks`` are cancelled already. ``hurry`` is set to end all at once."""

    def __init__(
        self,
        data_dir: Path,
        units: Sequence[Unit],
        tasks: Sequence[asyncio.Task[None]],
        hurry: asyncio.Event,
    ) -> None:
        self._run_dir = data_dir / "run"
        self._units = units
        self._tasks = tasks
        self._hurry = hurry

    async def ours(self) -> None:
        """End what a restart starts anew. Engines, the door and all sockets stay."""
        await self._stop({"server"}, SERVER_GRACE)
        await self._stop({"worker"}, WORKER_GRACE)
        await self._stop({"postgres"}, DATABASE_GRACE)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def everything(self, *, leave_found: bool) -> None:
        """Let server and door answer what is in flight, then end the worker, its engines, and the database.

        With ``leave_found`` the door and the engines are left as we found them when we came.
        """
        await self._stop({"server"} if leave_found else {"server", "door"}, SERVER_GRACE)
        await self._stop({"worker"}, WORKER_GRACE)
        for unit in self._units:
            if isinstance(unit, PythonChild):
                unit.kill()
        if not leave_found:
            await asyncio.to_thread(self._end_engines)
        rest = [unit for unit in self._units if not (leave_found and unit.name == "door")]
        await self._or_hurry([unit.stop(DATABASE_GRACE) for unit in rest])
        await asyncio.gather(*self._tasks, *(unit.stop(0) for unit in rest), return_exceptions=True)

    async def _stop(self, names: Collection[str], grace: float) -> None:
        await self._or_hurry([unit.stop(grace) for unit in self._units if unit.name in names])

    async def _or_hurry(self, stops: list[Coroutine[Any, Any, None]]) -> None:
        """Wait for ``stops``, but no longer than until the second signal."""
        waiting: list[asyncio.Future[Any]] = [
            asyncio.gather(*stops),
            asyncio.create_task(self._hurry.wait()),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _end_engines(self) -> None:
        """End the engines, which outlive every worker but not the whole."""
        from gpustack.worker.runners.ending import end_recorded

        end_recorded(self._run_dir, grace=0 if self._hurry.is_set() else ENGINE_GRACE)
