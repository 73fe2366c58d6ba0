"""Measures processor, memory and file systems with psutil, within the limits of a container."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpustack.plugin import SystemDetector, hookimpl
from gpustack_system.detector import PsutilDetector


@hookimpl
def register_system_detectors() -> Iterable[type[SystemDetector[Any]]]:
    """Return the one detector there is here."""
    return [PsutilDetector]
