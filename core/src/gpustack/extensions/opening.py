"""Makes and enters an extension where it can do no harm.

Its own code in ``__init__`` runs in a thread, its ``__aenter__`` and ``__aexit__`` on an event loop of its own: one that
blocks, hangs or tries to end the program keeps nobody else waiting for long, and is named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Generic, TypeVar, cast

from gpustack.extensions.catalogue import Catalogue, Registered, one_line
from gpustack.extensions.guard import Guard
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.threads import SideLoop, outcome_of
from gpustack.plugin import Extension, Host, PluginError, TryAgain

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Extension[Any])
T = TypeVar("T")

#: Seconds that an extension has to be made, and again to be entered or left.
LIMIT = 5.0


async def make(catalogue: Catalogue, registered: Registered[E], host: Host, *, limit: float = LIMIT) -> E:
    """Return a new object, not entered. Raises PluginError in one line; the catalogue then remembers why."""

    def making() -> E:
        try:
            return catalogue.make(registered, host)
        except SettingsError as error:
            raise PluginError(error.message) from error

    making.__name__ = f"making {registered.name}"  # it is named in messages
    with _noting(catalogue, registered):
        return await Guard.call(registered.plugin, making, timeout=limit)


async def opened(
    stack: AsyncExitStack,
    catalogue: Catalogue,
    registered: Registered[E],
    host: Host,
    *,
    limit: float = LIMIT,
) -> E:
    """Return a new object that is entered, and left when ``stack`` ends. Raises as :func:`make` does.

    For kinds whose other methods are plain functions: what it keeps for coroutines would belong to another loop.
    """
    extension = await make(catalogue, registered, host, limit=limit)
    cls = type(extension)
    if cls.__aenter__ is Extension.__aenter__ and cls.__aexit__ is Extension.__aexit__:
        return extension
    await _entered(stack, catalogue, Inside(registered, extension, limit))
    return extension


async def inside(
    stack: AsyncExitStack,
    catalogue: Catalogue,
    registered: Registered[E],
    host: Host,
    *,
    limit: float = LIMIT,
) -> Inside[E]:
    """Return a new object that is entered, for kinds whose coroutines are called while it lives: on the loop it lives on.

    It is left when ``stack`` ends. Raises as :func:`make` does.
    """
    extension = await make(catalogue, registered, host, limit=limit)
    return await _entered(stack, catalogue, Inside(registered, extension, limit))


async def _entered(stack: AsyncExitStack, catalogue: Catalogue, life: Inside[E]) -> Inside[E]:
    with _noting(catalogue, life.registered):
        await life.enter()
    stack.push_async_callback(life.leave)
    return life


@contextmanager
def _noting(catalogue: Catalogue, registered: Registered[Any]) -> Iterator[None]:
    """Have the catalogue remember what cannot be used; passing trouble is none of that."""
    try:
        yield
    except TryAgain:
        raise
    except PluginError as error:
        catalogue.note_unfit(registered, error.message)
        raise


class Inside(Generic[E]):
    """The life of one extension on a loop of its own."""

    def __init__(self, registered: Registered[E], extension: E, limit: float) -> None:
        self.registered = registered
        self.extension = extension
        self._what = f"plugin {registered.plugin}: {registered.name}"
        self._limit = limit
        self._loop = SideLoop(self._what)
        #: What was given up and has not ended.
        self._late: asyncio.Future[Any] | None = None

    async def enter(self) -> None:
        """Enter it. Raises PluginError in one line."""
        try:
            entered = await self._run(self.extension.__aenter__(), "opened", self._limit)
            if entered is not self.extension:
                raise PluginError(f"{self._what} cannot be opened: its __aenter__ does not return itself")
        except BaseException:
            self._loop.close()
            raise

    async def leave(self) -> None:
        """Leave it; what is wrong is logged."""
        try:
            await self._run(self.extension.__aexit__(None, None, None), "closed", self._limit)
        except GPUStackError as error:
            log.warning("%s", error.message)
        finally:
            self._loop.close()

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]], name: str, *, limit: float) -> T:
        """Return what the coroutine of ``work`` gives, run on the extension's loop, within ``limit`` seconds.

        Raises what it raises when that is a PluginError; anything else is logged and becomes one. One that takes longer is
        cancelled and becomes TryAgain; while it does not end for all that, further calls are TryAgain as well, and not begun.
        """
        if self._late is not None and not self._late.done():
            await asyncio.wait([self._late], timeout=limit)
            if not self._late.done():
                raise TryAgain(f"{self._what} is not called: an earlier call still hangs", after=limit)
        begun = _Begun(work)
        running = self._loop.start(begun.run())
        try:
            await asyncio.wait([running], timeout=limit)
        finally:
            if not running.done():
                self._late = running
                begun.cancel()
        if not running.done():
            raise TryAgain(f"{self._what}: {name} did not end within {limit:g} s", after=1.0)
        value, error = running.result()
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            log.error("%s: %s failed", self._what, name, exc_info=error)
            raise PluginError(f"{self._what}: {name} failed: {one_line(error)}") from error
        return cast("T", value)

    async def _run(self, work: Any, done: str, limit: float) -> object:
        running = self._loop.start(outcome_of(work))
        # Not cancelled when it takes too long: that does not reach what blocks its loop.
        await asyncio.wait([running], timeout=limit)
        if not running.done():
            raise PluginError(f"{self._what} was not {done} within {limit:g} s")
        value, error = running.result()
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            log.error("%s cannot be %s", self._what, done, exc_info=error)
            raise PluginError(f"{self._what} cannot be {done}: {one_line(error)}") from error
        return value


class _Begun(Generic[T]):
    """Work on another loop that can be cancelled from here, and tells when it has really ended."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[tuple[T | None, BaseException | None]] | None = None
        self._given_up = False

    async def run(self) -> tuple[T | None, BaseException | None]:
        """Do the work, and return what it gives or raises."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._outcome())
        if self._given_up:
            self._task.cancel()
        return await self._task

    async def _outcome(self) -> tuple[T | None, BaseException | None]:
        # Made here, once it runs: a task that is cancelled before that would leave it behind, never awaited.
        return await outcome_of(self._awaited())

    async def _awaited(self) -> T:
        return await self._work()

    def cancel(self) -> None:
        """Ask it to end; from the thread of whoever waits for it."""
        self._given_up = True
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
