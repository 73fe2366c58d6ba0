"""Calls a plugin's plain methods where they can do no harm: in a thread, with a time limit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from gpustack.extensions.catalogue import one_line
from gpustack.kit.threads import MOST, StillHangingError, call_aside
from gpustack.plugin import PluginError, TryAgain

log = logging.getLogger(__name__)

T = TypeVar("T")


class Guard:
    """The time limit and the translation of errors around a plugin's pure methods."""

    #: Seconds after which a plugin that hung is worth another call.
    AFTER_HANG: ClassVar[float] = 60.0

    @classmethod
    async def call(cls, plugin: str, method: Callable[..., T], *args: Any, timeout: float = 5.0) -> T:
        """Return ``method(*args)``, run in a thread of its own; of one object of a plugin a few run at a time.

        Raises what the plugin raises when that is a PluginError. After ``timeout`` seconds raises TryAgain; the
        thread is left to itself and does not keep the program from ending. While all of the plugin's threads
        hang like that, TryAgain comes at once. Anything else that the plugin raises is logged with its traceback
        and becomes a PluginError of one line naming the plugin.
        """
        what = f"plugin {plugin}: {getattr(method, '__name__', 'call')}"
        try:
            value, error = await call_aside(
                _kind(plugin, method), lambda: _outcome(method, args), timeout=timeout
            )
        except StillHangingError:
            raise TryAgain(
                f"{what} is not called: {MOST} earlier calls still hang", after=cls.AFTER_HANG
            ) from None
        except TimeoutError:
            log.warning("%s did not answer within %.1f s", what, timeout)
            raise TryAgain(f"{what} did not answer within {timeout:g} s", after=cls.AFTER_HANG) from None
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            log.error("%s failed", what, exc_info=error)
            raise PluginError(f"{what} failed: {one_line(error)}") from error
        return cast("T", value)  # without an error it is the method's own answer


def _kind(plugin: str, method: Callable[..., Any]) -> str:
    """Return what shares its few threads: the calls of one object, so that two servers in a process share none."""
    owner = getattr(method, "__self__", None)
    return f"plugin {plugin}" if owner is None else f"plugin {plugin} {id(owner):x}"


def _outcome(method: Callable[..., T], args: tuple[Any, ...]) -> tuple[T | None, BaseException | None]:
    # The error travels as a value: a future refuses StopIteration, and SystemExit would end the loop.
    try:
        return method(*args), None
    except BaseException as error:  # noqa: BLE001  # a thread has nobody above it
        return None, error
