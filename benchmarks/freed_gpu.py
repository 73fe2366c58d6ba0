"""Milliseconds from a freed GPU to SCHEDULED: an instance that waits for it is placed, and that is written and told.

The clock runs from before the row of the instance that leaves is deleted, until a watcher of instances is told that the
waiting one is SCHEDULED. Store, feed and reconciler are real, over a real PostgreSQL; workers and backend only obey.
Floor: a row that is changed, and told to the same watcher.

    freed_gpu.py [ROUNDS]     30 unless told otherwise
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import report

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from gpustack.db import Store
from gpustack.schemas import InstanceState, ModelUpdate
from support.churn import PATH, House, deciding
from support.postgres import binaries, serving

ROUNDS = 30
GPUS, SIZE = 8, 20


class Clock:
    """When rows were about to be deleted, and when the watcher was told of what."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.freed = 0.0
        self._delete = house.store.instances.delete
        self._waiting: tuple[Callable[[Any], bool], asyncio.Future[float]] | None = None

    async def delete(self, number: int) -> Any:
        self.freed = time.perf_counter()
        return await self._delete(number)

    async def follow(self) -> None:
        since = await self._house.store.events.last_number()
        async with self._house.feed.subscribe({"models", "model-instances"}, since=since) as events:
            async for event in events:
                if self._waiting is not None and self._waiting[0](event):
                    self._waiting[1].set_result(time.perf_counter())
                    self._waiting = None

    def told(self, condition: Callable[[Any], bool]) -> asyncio.Future[float]:
        """Return the moment at which the watcher is told of an event with that condition."""
        found: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting = condition, found
        return found


async def main(rounds: int) -> None:
    with serving(binaries()) as server:
        url = server.url(await server.create_database())
        async with await Store.open(url) as store:
            await store.migrate()
            await store.bootstrap("no password")
        async with deciding(url, {"heartbeat_loss": 3600.0}) as house:
            await measure(house, rounds)


async def measure(house: House, rounds: int) -> None:
    clock = Clock(house)
    # The clock starts as the row of who leaves is about to go: nobody outside sees that moment.
    house.store.instances.delete = clock.delete  # type: ignore[method-assign]
    following = asyncio.create_task(clock.follow())
    following.add_done_callback(lambda task: task.cancelled() or task.result())
    # Too little for a copy on the processor.
    await house.worker("box", ram=16, gpus=[24] * GPUS)
    await house.model("others", replicas=GPUS - 1, gib=SIZE)
    await house.settled()
    leaves, waits = await house.model("a", gib=SIZE), None
    await house.settled()
    waits = await house.model("b", gib=SIZE)
    taken, floor = [], []
    for _ in range(rounds):
        await house.settled()
        scheduled = clock.told(lambda event: event.data.get("state") == InstanceState.SCHEDULED)
        await replicas(house, leaves.id, 0)
        taken.append(await scheduled - clock.freed)
        await house.settled()
        told = clock.told(lambda event: event.topic == "models")
        began = time.perf_counter()
        await replicas(house, leaves.id, 1)
        floor.append(await told - began)
        leaves, waits = waits, leaves
    following.cancel()
    least = 1000 * statistics.median(floor)
    for title, value in (("median", statistics.median(taken)), ("longest", max(taken))):
        report(
            f"freed GPU to SCHEDULED, {title} of {rounds}",
            1000 * value,
            "ms",
            floor=least,
            floor_name="a change that is told",
            goal=50,
        )


async def replicas(house: House, model: int, count: int) -> None:
    wanted = ModelUpdate(local_path=PATH, replicas=count, backend_parameters=[f"--gib={SIZE}"])
    await house.store.models.update(model, wanted)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
