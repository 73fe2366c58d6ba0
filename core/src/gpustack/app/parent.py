"""What a role says to the supervisor that started it, and hears from it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Parent:
    """Writes to the supervisor's pipe, which may have lost its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        #: Called with another configuration, to be applied without a restart.
        self.on_reload: Callable[[dict[str, Any]], None] | None = None

    def ready(self) -> None:
        """Say that the role does its work."""
        self._write("READY\n")

    def refused(self, message: str) -> None:
        """Say why it never will."""
        self._write("REFUSED " + " ".join(message.split()) + "\n")

    def say(self, message: str) -> None:
        """Have the supervisor tell the person in front of the terminal."""
        self._write("SAY " + " ".join(message.split()) + "\n")

    def reload(self, configuration: dict[str, Any]) -> None:
        """Apply another configuration, and say of that number how it went."""
        number = configuration["number"]
        try:
            if self.on_reload is not None:
                self.on_reload(configuration)
        except Exception as error:
            log.exception("the new settings cannot be applied")
            self._write(f"RELOADED {number} {' '.join(str(error).split())}\n")
        else:
            self._write(f"RELOADED {number}\n")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, line.encode())
