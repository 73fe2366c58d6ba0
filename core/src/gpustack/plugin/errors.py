"""How a plugin says that something did not work.

PluginError
├── TryAgain    passing trouble: call again after ``after`` seconds
└── Refused     it will never work as asked; do not call again
"""

from __future__ import annotations

from gpustack.kit.errors import GPUStackError


class PluginError(GPUStackError):
    """Trouble that the plugin explains in one line."""


class TryAgain(PluginError):
    """Passing trouble. ``after`` is the wait in seconds before the next call."""

    def __init__(self, message: str, *, after: float) -> None:
        super().__init__(message)
        self.after = after


class Refused(PluginError):
    """The request can never succeed; calling again changes nothing."""
