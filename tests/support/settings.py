"""Third-party plugins that bring options, as entry points, and the pair of files that TLS takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from gpustack.plugin import Extension, SystemDetector, SystemReading, hookimpl


def a_plugin(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *models: object,
    extensions: Iterable[type[Extension[Any]]] = (),
) -> EntryPoint:
    """Return the entry point of a plugin whose ``register_settings`` returns ``models``; a function is called there."""
    module = ModuleType(f"{name}_module_of_a_test")

    @hookimpl
    def register_settings() -> list[object]:
        (first, *_) = models or (None,)
        return first() if isinstance(first, Callable) and not isinstance(first, type) else list(models)  # type: ignore[no-any-return, arg-type]

    @hookimpl
    def register_system_detectors() -> list[type[Extension[Any]]]:
        return list(extensions)

    module.register_settings = register_settings  # type: ignore[attr-defined]
    module.register_system_detectors = register_system_detectors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return EntryPoint(name, module.__name__, "gpustack")


def a_detector(name: str, settings: type[BaseModel]) -> type[SystemDetector[Any]]:
    """Return an extension class that takes ``settings``."""

    class Detector(SystemDetector[Any]):
        settings_type = settings

        def read(self) -> SystemReading:
            raise NotImplementedError

    Detector.name = name
    return Detector
