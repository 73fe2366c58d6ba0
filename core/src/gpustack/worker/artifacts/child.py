"""Runs the programs that install, each with its whole tree in a session of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpustack.kit.process import OWN_SESSION, end_tree_async


async def run_child(
    command: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    cwd: Path,
    output: Path,
    timeout: float,
) -> int:
    """Run ``command`` and return its exit status; all it prints is appended to the file ``output``.

    Raises TimeoutError after ``timeout`` seconds, and OSError when it cannot be started. However this ends,
    nothing of it runs any more.
    """
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
            **OWN_SESSION,
        )
    try:
        async with asyncio.timeout(timeout):
            return await process.wait()
    except BaseException:
        # Shielded: a second cancellation must not leave the tree alive.
        await asyncio.shield(_end(process))
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    await end_tree_async(process.pid, grace=1.0)
    await process.wait()
