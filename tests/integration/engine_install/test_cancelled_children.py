"""A cancelled child ends with all it started, and whoever cancelled it goes on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import uvloop

from gpustack.worker.artifacts.child import run_child

_STUBBORN = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 31 & sleep 30"]


async def _cancel_many(log: Path) -> None:
    async def one() -> None:
        task = asyncio.create_task(
            run_child(_STUBBORN, env=dict(os.environ), cwd=log.parent, output=log, timeout=60)
        )
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await asyncio.wait_for(asyncio.gather(*(one() for _ in range(24))), 20)
    # The loop closes the transports a moment after it has the exit statuses.
    await asyncio.sleep(0.2)


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_many_at_once(loop_factory: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        runner.run(_cancel_many(tmp_path / "log"))
    assert "Unknown child" not in caplog.text
