"""Calls of a driver, which may block for ever, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from gpustack.plugin import TryAgain

T = TypeVar("T")


def in_daemon(work: Callable[[], T]) -> Future[T]:
    """Start ``work`` in a thread that keeps no program from ending; the future tells how it ends."""
    call: Future[T] = Future()
    call.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # handed to whoever waits
            call.set_exception(error)
        else:
            call.set_result(result)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    return call


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return ``work()``. Raises TimeoutError when it takes longer; it goes on by itself then."""
    call = in_daemon(work)
    if not wait([call], timeout=seconds).done:
        raise TimeoutError
    return call.result()


class Calls:
    """One call at a time: while an earlier one hangs, none is begun."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._open: Future[Any] | None = None
        self._since = 0.0

    async def run(self, work: Callable[[], T]) -> T:
        """Return ``work()``. Raises TryAgain when it takes longer than the limit, or an earlier one still does."""
        if self._open is not None and not self._open.done():
            raise self._hangs()
        self._since = time.monotonic()
        self._open = call = in_daemon(work)
        waiting = asyncio.wrap_future(call)
        done, _ = await asyncio.wait([waiting], timeout=self._limit)
        if not done:
            waiting.cancel()  # no more than the wait: the thread cannot be ended
            raise self._hangs()
        return waiting.result()

    def _hangs(self) -> TryAgain:
        seconds = time.monotonic() - self._since
        return TryAgain(
            f"the NVIDIA driver has not answered for {seconds:.0f} s; `nvidia-smi` there tells more", after=30
        )
