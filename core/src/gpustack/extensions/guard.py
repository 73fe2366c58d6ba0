"""Calls a plugin's plain methods where they can do no harm: in a thread, with a time limit."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from gpustack.extensions.catalogue import one_line
from gpustack.plugin import PluginError, TryAgain

log = logging.getLogger(__name__)

T = TypeVar("T")


class Guard:
    """The time limit and the translation of errors around a plugin's pure methods."""

    #: Threads of one plugin that may hang at a time; after that its calls fail at once.
    MOST_HUNG: ClassVar[int] = 4
    #: Seconds after which a plugin that hung is worth another call.
    AFTER_HANG: ClassVar[float] = 60.0

    # Threads belong to the process, so this is the process's count: it cannot belong to one owner.
    _hung: ClassVar[dict[str, set[threading.Thread]]] = {}

    @classmethod
    async def call(cls, plugin: str, method: Callable[..., T], *args: Any, timeout: float = 5.0) -> T:
        """Return ``method(*args)``, run in a thread of its own.

        Raises what the plugin raises when that is a PluginError. After ``timeout`` seconds raises TryAgain; the
        thread is left to itself and does not keep the program from ending. Anything else that the plugin
        raises is logged with its traceback and becomes a PluginError of one line naming the plugin.
        """
        what = f"plugin {plugin}: {getattr(method, '__name__', 'call')}"
        hung = {thread for thread in cls._hung.get(plugin, ()) if thread.is_alive()}
        if len(hung) >= cls.MOST_HUNG:
            raise TryAgain(
                f"{what} is not called: {len(hung)} earlier calls still hang", after=cls.AFTER_HANG
            )
        cls._hung[plugin] = hung

        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()
        thread = threading.Thread(target=_run, args=(loop, outcome, method, args), name=what, daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(timeout):
                value, error = await outcome
        except TimeoutError:
            hung.add(thread)
            log.warning("%s did not answer within %.1f s", what, timeout)
            raise TryAgain(f"{what} did not answer within {timeout:g} s", after=cls.AFTER_HANG) from None
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            log.error("%s failed", what, exc_info=error)
            raise PluginError(f"{what} failed: {one_line(error)}") from error
        return value  # type: ignore[return-value]  # without an error it is the method's own answer


def _run(
    loop: asyncio.AbstractEventLoop,
    outcome: asyncio.Future[tuple[T | None, BaseException | None]],
    method: Callable[..., T],
    args: tuple[Any, ...],
) -> None:
    # The error travels as a value: a future refuses StopIteration, and SystemExit would end the loop.
    result: tuple[T | None, BaseException | None]
    try:
        result = (method(*args), None)
    except BaseException as error:  # noqa: BLE001  # a thread has nobody above it
        result = (None, error)
    try:
        loop.call_soon_threadsafe(_deliver, outcome, result)
    except RuntimeError:
        log.debug("an answer came after the end of the program", exc_info=True)


def _deliver(outcome: asyncio.Future[Any], result: Any) -> None:
    if not outcome.done():
        outcome.set_result(result)
