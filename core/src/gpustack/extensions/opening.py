"""Makes and enters an extension where it can do no harm.

Its own code in ``__init__`` runs in a thread, its ``__aenter__`` and ``__aexit__`` on an event loop of its own: one that
blocks, hangs or tries to end the program keeps nobody else waiting for long, and is named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

from gpustack.extensions.catalogue import Catalogue, Registered, one_line
from gpustack.extensions.guard import Guard
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.threads import SideLoop, outcome_of
from gpustack.plugin import Extension, Host, PluginError, TryAgain

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Extension[Any])

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
    inside = _Inside(registered, extension, limit)
    with _noting(catalogue, registered):
        await inside.enter()
    stack.push_async_callback(inside.leave)
    return extension


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


class _Inside:
    """The life of one extension on a loop of its own."""

    def __init__(self, registered: Registered[Any], extension: Extension[Any], limit: float) -> None:
        self._what = f"plugin {registered.plugin}: {registered.name}"
        self._extension = extension
        self._limit = limit
        self._loop = SideLoop(self._what)

    async def enter(self) -> None:
        try:
            entered = await self._run(self._extension.__aenter__(), "opened")
            if entered is not self._extension:
                raise PluginError(f"{self._what} cannot be opened: its __aenter__ does not return itself")
        except BaseException:
            self._loop.close()
            raise

    async def leave(self) -> None:
        try:
            await self._run(self._extension.__aexit__(None, None, None), "closed")
        except GPUStackError as error:
            log.warning("%s", error.message)
        finally:
            self._loop.close()

    async def _run(self, work: Any, done: str) -> object:
        running = self._loop.start(outcome_of(work))
        # Not cancelled when it takes too long: that does not reach what blocks its loop.
        await asyncio.wait([running], timeout=self._limit)
        if not running.done():
            raise PluginError(f"{self._what} was not {done} within {self._limit:g} s")
        value, error = running.result()
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            log.error("%s cannot be %s", self._what, done, exc_info=error)
            raise PluginError(f"{self._what} cannot be {done}: {one_line(error)}") from error
        return value
