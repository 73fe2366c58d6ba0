from __future__ import annotations

import asyncio
import os
import signal

from gpustack.app.child import _until_signalled


async def test_who_is_asked_twice_to_end_finishes_what_the_first_began() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.1)
            done.append("drained")

    async def follow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            done.append("followed")

    try:
        assert await _until_signalled(work(), follow()) == 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    assert done == ["drained", "followed"]
