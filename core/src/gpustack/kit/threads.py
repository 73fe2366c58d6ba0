"""Work that may block for ever, beside the event loop: in daemon threads, which keep no program from ending.

Nothing here takes a thread of the loop's own pool, so that hanging work of one kind does not starve the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
P = ParamSpec("P")

#: Threads of one kind of work at a time.
MOST = 4


class StillHangingError(Exception):
    """The work is not begun: as many earlier calls of its kind as may run have not come back in their time."""


@dataclass(slots=True)
class _Lane:
    """The calls of one kind. A call that is given up keeps its place until its thread ends."""

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST))
    users: int = 0
    hung: int = 0


# By loop, since threads that outlive theirs belong to nobody any more.
_lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Lane]] = WeakKeyDictionary()


async def call_aside(kind: str, work: Callable[[], T], *, timeout: float) -> T:
    """Return ``work()``, run in a thread of its own; of one ``kind`` at most :data:`MOST` run at a time.

    Raises TimeoutError after ``timeout`` seconds, waiting for a place included; the thread is left to itself.
    Raises StillHangingError at once when all places are taken by such threads.
    """
    lanes = _lanes.setdefault(asyncio.get_running_loop(), {})
    lane = lanes.setdefault(kind, _Lane())
    if lane.hung >= MOST:
        raise StillHangingError(kind)
    call: Future[T] | None = None
    lane.users += 1
    try:
        async with asyncio.timeout(timeout):
            await lane.places.acquire()
            call = in_daemon(work, name=kind)
            _when_done(call, lambda: _leave(lanes, kind, lane))
            return await asyncio.wrap_future(call)
    except TimeoutError:
        if call is not None and not call.done():
            lane.hung += 1
            _when_done(call, lambda: _came_back(lane))
        raise
    finally:
        if call is None:
            lane.users -= 1


def in_daemon(work: Callable[[], T], *, name: str) -> Future[T]:
    """Start ``work`` in a daemon thread; the future tells how it ends. Once begun it cannot be cancelled."""
    call: Future[T] = Future()
    call.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # handed to whoever waits
            call.set_exception(error)
        else:
            call.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return call


def _when_done(call: Future[Any], then: Callable[[], None]) -> None:
    """Call ``then`` on the running loop once ``call`` is done; never when the loop has ended before."""
    loop = asyncio.get_running_loop()

    def tell(_call: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(then)

    call.add_done_callback(tell)


def _leave(lanes: dict[str, _Lane], kind: str, lane: _Lane) -> None:
    lane.places.release()
    lane.users -= 1
    if not lane.users:
        lanes.pop(kind, None)


def _came_back(lane: _Lane) -> None:
    lane.hung -= 1


async def outcome_of(work: Awaitable[T]) -> tuple[T | None, BaseException | None]:
    """Return what ``work`` gives, or what it raises, whatever that is.

    As a value it passes between loops: SystemExit would end the one that it is raised on.
    """
    try:
        return await work, None
    except BaseException as error:  # noqa: BLE001  # handed to whoever waits
        return None, error


class SideLoop:
    """An event loop of its own in a daemon thread, for coroutines that may block their loop.

    Whatever they hand to ``asyncio.to_thread`` runs in daemon threads too.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Daemons(name))
        in_daemon(self._run, name=name)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begin ``work`` there; the future belongs to the running loop, and cancelling it cancels the work."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Let the thread end as soon as nothing blocks it; does not wait for that."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self._loop.close()


class _Daemons(ThreadPoolExecutor):
    """No pool at all: a daemon thread for each piece of work."""

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1)
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn`` in a thread of its own."""
        return in_daemon(lambda: fn(*args, **kwargs), name=self._name)
