"""A terminal that is drawn on as a whole, and given back as it was found however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TextIO

if sys.platform != "win32":
    import termios
    import tty

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
_LEAVE = "\x1b[?25h\x1b[?1049l"


def can_draw(out: TextIO) -> bool:
    """Tell whether ``out`` is a terminal for a :class:`Screen`."""
    return sys.platform != "win32" and out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


class Screen:
    """The terminal's other screen, entered and left as a context inside an event loop.

    ``on_key`` gets what is typed, ``on_change`` is called when everything has to be drawn anew: another size, or
    back from Ctrl-Z; ``on_end`` at SIGTERM and SIGHUP. Ctrl-C stays what it is.
    """

    def __init__(
        self,
        out: TextIO,
        *,
        on_key: Callable[[str], None],
        on_change: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._out = out
        self._on_key = on_key
        self._on_change = on_change
        self._on_end = on_end
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: Any = None
        self._shown = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._enter()
        if self._keys is not None:
            loop.add_reader(self._keys, self._read)
        loop.add_signal_handler(signal.SIGWINCH, self._on_change)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        if self._keys is not None:
            loop.remove_reader(self._keys)
        for number in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        self._leave()

    def draw(self, lines: list[str]) -> None:
        """Show ``lines`` from the top; what stood there is painted over without a flicker."""
        text = (
            "\x1b[H"
            + "".join(f"{line}\x1b[K\r\n" for line in lines[:-1])
            + "".join(lines[-1:])
            + "\x1b[K\x1b[J"
        )
        self._write(text)

    def _enter(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._shown = True
        self._write(_ENTER)

    def _leave(self) -> None:
        if not self._shown:
            return
        self._shown = False
        # The terminal may be gone, as when its window was closed.
        with suppress(OSError):
            self._write(_LEAVE)
        with suppress(OSError, termios.error):
            if self._keys is not None:
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _suspend(self) -> None:
        """Give the terminal back to the shell, sleep until `fg`, and take it again."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self._on_change()

    def _read(self) -> None:
        assert self._keys is not None
        typed = b""
        with suppress(OSError):
            typed = os.read(self._keys, 64)
        if not typed:
            asyncio.get_running_loop().remove_reader(self._keys)
        for key in typed.decode(errors="ignore"):
            self._on_key(key)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def has_terminal() -> bool:
    """Tell whether this process belongs to a terminal: when that is closed, it gets a hang-up signal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True
