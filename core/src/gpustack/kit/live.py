"""A value that may change while the program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Live(Generic[T]):
    """A value with those who want to hear of another one."""

    def __init__(self, now: T) -> None:
        #: The present value.
        self.now = now
        self._listeners: list[Callable[[T], None]] = []

    def listen(self, changed: Callable[[T], None]) -> None:
        """Call ``changed`` with each new value; it must not raise."""
        self._listeners.append(changed)

    def change(self, new: T) -> None:
        """Take a new value and tell everybody."""
        self.now = new
        for changed in self._listeners:
            changed(new)
