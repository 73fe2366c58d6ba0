"""What an earlier PostgreSQL may have left: processes of its own, and a ``postmaster.pid`` that names one.

The lock on the cluster's folder must be held: then any process found there has lost its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import psutil

from gpustack.kit.errors import GPUStackError
from gpustack.kit.locks import FileLock

log = logging.getLogger(__name__)

#: Signals in the order of their force, each with the seconds given to it. The first waits for a server that lost its
#: supervisor too, and answers what is in flight.
_FORCE = ((signal.SIGTERM, 4.0), (signal.SIGINT, 4.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 4.0))


async def clear(data: Path) -> None:
    """End what still runs in the cluster ``data`` and remove its stale ``postmaster.pid``.

    Takes no time after a clean stop. Raises GPUStackError when a process cannot be ended within 14 seconds.
    """
    file = data / "postmaster.pid"
    if not file.exists():
        return
    postmaster = _named_in(file)
    if left := await asyncio.to_thread(holders, data):
        log.info("PostgreSQL still runs from before (process %s); ending it first", left[0].pid)
        await asyncio.to_thread(_end, left, postmaster)
        if left := await asyncio.to_thread(holders, data):
            raise GPUStackError(
                f"process {left[0].pid} of an earlier PostgreSQL in {data} does not end; end it"
            )
    # Only now: with the file goes PostgreSQL's own check that nobody else writes to these files. The process named
    # in it may be one that has nothing to do with us, whose presence alone would keep PostgreSQL from starting.
    file.unlink(missing_ok=True)


async def end(folder: Path) -> None:
    """End what still runs in the cluster below ``folder``, unless somebody who holds its lock keeps it running."""
    lock = FileLock(folder / "lock")
    if not lock.path.exists() or not lock.acquire():
        return
    try:
        await clear(folder / "data")
    finally:
        lock.release()


def holders(data: Path) -> list[psutil.Process]:
    """Return the processes of PostgreSQL that work in ``data``; a zombie works nowhere."""
    found = []
    place = str(data.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith("postgres") and process.cwd() == place:
                found.append(process)
    return found


def _named_in(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _end(processes: list[psutil.Process], postmaster: int | None) -> None:
    """End them: the postmaster is asked, and takes its own along; those without one notice it themselves soon."""
    alive = processes
    for number, seconds in _FORCE:
        chief = [each for each in alive if each.pid == postmaster]
        for process in chief if chief and number != signal.SIGKILL else alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=seconds)
        if not alive:
            return
