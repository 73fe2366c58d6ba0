"""How the supervisor's units end: in the order in which they need each other, and in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from pathlib import Path
from typing import Any

from gpustack.app import doors
from gpustack.app.banner import say
from gpustack.app.children import Child, Unit
from gpustack.app.programs import Program

#: Seconds that each gets to end by itself, in this order; together under 10, even if all of them hang.
#: Server, gateways and door go first, while engines still answer what is in flight; what they need goes after them.
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
        self._data_dir = data_dir
        self._run_dir = data_dir / "run"
        self._units = units
        self._tasks = tasks
        self._hurry = hurry

    @property
    def _gateways(self) -> set[str]:
        return {unit.name for unit in self._units if unit.name.startswith("gateway")}

    @property
    def _programs(self) -> set[str]:
        return {unit.name for unit in self._units if isinstance(unit, Program)}

    async def ours(self) -> None:
        """End what a restart starts anew. Engines, gateways, the door and all sockets stay."""
        await self._stop({"server", *self._programs}, SERVER_GRACE)
        await self._stop({"worker"}, WORKER_GRACE)
        await self._stop({"postgres"}, DATABASE_GRACE)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def everything(self, *, leave_door: bool, leave_engines: bool) -> None:
        """Let server and door answer what is in flight, then end the worker, its engines, and the database.

        What goes wrong with one of them is said, and keeps none of the others.
        """
        front = {"server", *self._gateways, *self._programs}
        await self._stop(front if leave_door else {*front, "door"}, SERVER_GRACE)
        if not leave_door:
            # Those that were retired by us, and let their last streams end.
            await _or_say("gateways", asyncio.to_thread(self._end_retired))
        await self._stop({"worker"}, WORKER_GRACE)
        for unit in self._units:
            if isinstance(unit, Child):
                unit.kill()
        await _or_say("installs", asyncio.to_thread(self._end_installs))
        if not leave_engines:
            await _or_say("engines", asyncio.to_thread(self._end_engines))
        rest = [unit for unit in self._units if not (leave_door and unit.name == "door")]
        await self._or_hurry(rest, DATABASE_GRACE)
        await asyncio.gather(*self._tasks, *(unit.stop(0) for unit in rest), return_exceptions=True)

    async def _stop(self, names: Collection[str], grace: float) -> None:
        await self._or_hurry([unit for unit in self._units if unit.name in names], grace)

    async def _or_hurry(self, units: Sequence[Unit], grace: float) -> None:
        """Stop ``units``, but wait no longer than until the second signal."""
        waiting: list[asyncio.Future[Any]] = [
            asyncio.gather(*(_or_say(unit.name, unit.stop(grace)) for unit in units)),
            asyncio.create_task(self._hurry.wait()),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _end_retired(self) -> None:
        doors.end_doors(self._run_dir, grace=0.0, kind=doors.GATEWAYS)

    def _end_installs(self) -> None:
        """End what a worker that was killed had begun to install."""
        home = self._data_dir / "pipx"
        if any(home.glob(".*.busy")):
            from gpustack.worker.artifacts.folders import end_abandoned

            end_abandoned(home)

    def _end_engines(self) -> None:
        """End the engines, which outlive every worker but not the whole."""
        from gpustack.worker.runners.ending import end_recorded

        end_recorded(self._run_dir, grace=0 if self._hurry.is_set() else ENGINE_GRACE)


async def _or_say(what: str, end: Awaitable[None]) -> None:
    """Await the ``end`` of something; whatever is wrong with it, the others have to end too."""
    [error] = await asyncio.gather(end, return_exceptions=True)
    if isinstance(error, Exception):
        say(f"Error: {what} did not end as it should ({type(error).__name__}: {error})")
