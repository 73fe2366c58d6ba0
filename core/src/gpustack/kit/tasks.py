"""Named background tasks that cannot end unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError

log = logging.getLogger(__name__)

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` until it is done, also when we are cancelled meanwhile, which takes effect afterwards."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s, while being cancelled", error)
        raise asyncio.CancelledError
    return task.result()


async def persist(work: Callable[[], Coroutine[Any, Any, T]], what: str, *, limit: float = 30.0) -> T:
    """Return what ``work`` does, however often it fails: each time it is logged, and tried again later.

    ``what`` begins the line; ``limit`` is the longest wait in seconds.
    """
    wait = Backoff(first=0.5, limit=limit)
    while True:
        try:
            return await work()
        except Exception as error:
            known = isinstance(error, GPUStackError | OSError)
            log.warning("%s failed, and is tried again: %s", what, error, exc_info=not known)
        await asyncio.sleep(wait.next())


def plain(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what people can read of a task group's failure: its first GPUStackError, when it holds nothing else."""
    known, rest = group.split(GPUStackError)
    if known is None or rest is not None:
        return group
    error: BaseException = known
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Tasks:
    """The background tasks of one owner: started by name, ended together.

    A task that fails is logged once with its name and handed to ``on_failure``; it never vanishes.

        async with Tasks("worker") as tasks:
            tasks.start("heartbeat", beat())
    """

    def __init__(self, owner: str, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` in the background under ``name``."""
        task = asyncio.create_task(work, name=f"{self._owner}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("%s: ended unexpectedly: %s", task.get_name(), error, exc_info=error)
        if self._on_failure is not None:
            self._on_failure(task.get_name(), error)

    async def stop(self) -> None:
        """Cancel what still runs and wait for it; tasks may start others while they end."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)
