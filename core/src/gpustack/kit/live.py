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
        """Call ``changed`` with each new value."""
        self._listeners.append(changed)

    def change(self, new: T) -> None:
        """Take a new value and tell everybody; raises the first error of theirs once all have been told."""
        self.now = new
        first: Exception | None = None
        for changed in self._listeners:
            try:
                changed(new)
            except Exception as error:  # noqa: BLE001 - raised below
                first = first or error
        if first is not None:
            raise first
