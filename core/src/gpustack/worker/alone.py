"""Only one worker works in a data directory, or one instance might get two engines.

An earlier worker may be there still: stopped by a signal, or hung, and believed to be dead by whoever started the next
one. It is ended for good before the next one does anything; its engines go on, and are adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from gpustack.kit.errors import GPUStackError
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.kit.process import identify, wait_gone

log = logging.getLogger(__name__)

#: Seconds in which an earlier worker that is about to end does so by itself.
_PATIENCE = 1.0
#: Seconds until the lock of a process that was killed is free.
_FOR_GOOD = 5.0


@asynccontextmanager
async def alone(folder: Path) -> AsyncGenerator[None]:
    """Be the only worker that has its records in ``folder`` while the block runs.

    Raises GPUStackError with one line when somebody else holds it who cannot be told to be an earlier worker.
    """
    lock = FileLock(make_dir(folder, what="directory", mode=0o700) / "worker.lock")
    if not lock.acquire():
        await _end_holder(lock)
        if not lock.acquire():
            raise GPUStackError(f"{lock.path} is held by another program; end it, or name another --data-dir")
    try:
        yield
    finally:
        lock.release()


async def _end_holder(lock: FileLock) -> None:
    number = lock.holder()
    who = identify(number) if number is not None and number != os.getpid() else None
    if who is None:
        return
    gone = asyncio.create_task(wait_gone(who), name="worker: earlier worker")
    try:
        done, _ = await asyncio.wait([gone], timeout=_PATIENCE)
        if done or not await asyncio.to_thread(_has_open, who.pid, lock.path):
            return
        log.warning("process %d is an earlier worker that does not end; ending it for good", who.pid)
        with contextlib.suppress(psutil.Error):
            psutil.Process(who.pid).kill()
        await asyncio.wait([gone], timeout=_FOR_GOOD)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


def _has_open(pid: int, path: Path) -> bool:
    """Tell whether that process has the file open: in another container the number means somebody else."""
    try:
        return any(Path(each.path) == path.resolve() for each in psutil.Process(pid).open_files())
    except psutil.Error:
        return False
