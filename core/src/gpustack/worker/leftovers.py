"""Ending all that an instance has running, until it is gone: an engine that is left holds memory and its port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.worker.runners.ending import end_engines
from gpustack.worker.runners.engine import Engine
from gpustack.worker.runners.records import read_record, record_path


async def clear(run_dir: Path, instance_id: int, *, grace: float) -> str:
    """End whatever the record of an instance tells of; return a line for what is left, "" for nothing."""
    record = await asyncio.to_thread(read_record, record_path(run_dir, instance_id))
    return "" if record is None else await asyncio.to_thread(end_engines, run_dir, [record], grace=grace)


async def make_way(run_dir: Path, instance_id: int, *, grace: float) -> None:
    """End what is left of the start before. Raises GPUStackError with one line when that cannot be ended."""
    if left := await clear(run_dir, instance_id, grace=grace):
        raise GPUStackError(f"{left}; no other is started beside it")


async def end_all(
    run_dir: Path,
    instance_id: int,
    engine: Engine | None,
    *,
    grace: float,
    insist: Callable[[str], None] | None = None,
) -> bool:
    """End ``engine``, or what the record tells of, with everything it started; return whether all are gone.

    With ``insist`` it is tried until they are, ever more rarely; ``insist`` gets a line before each further try.
    """
    wait = Backoff(first=2.0, limit=60.0)
    while left := await (engine.end(grace=grace) if engine else clear(run_dir, instance_id, grace=grace)):
        if insist is None:
            return False
        seconds = wait.next()
        insist(f"{left}; trying again in {seconds:.0f} s")
        await asyncio.sleep(seconds)
    return True
