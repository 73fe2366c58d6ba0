"""Loads the plugins for a command, whose output is nobody's but its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from gpustack.extensions import Catalogue


def load_plugins(found: Iterable[EntryPoint] | None = None) -> Catalogue:
    """Return what the installed plugins bring, or those ``found``; what they print goes to the standard error."""
    from gpustack.extensions import load_catalogue

    with contextlib.redirect_stdout(sys.stderr):
        return load_catalogue(found)
