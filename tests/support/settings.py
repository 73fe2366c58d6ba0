"""An environment without settings, and third-party plugins that bring options, as entry points."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from gpustack.plugin import Extension, SystemDetector, SystemReading, Verdict, hookimpl

#: Variables of options that have another name, or a second one.
_OTHERS = {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "POD_NAMESPACE"}


def forget_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out what whoever runs the tests has set."""
    for name in list(os.environ):
        if name.startswith("GPUSTACK_") or name in _OTHERS:
            monkeypatch.delenv(name)


def a_plugin(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    *models: type[BaseModel],
    extensions: Iterable[type[Extension[Any]]] = (),
    answer: Callable[[], object] | None = None,
) -> EntryPoint:
    """Return the entry point of a plugin that brings the options of ``models``, or whatever ``answer`` returns."""
    module: Any = ModuleType(f"{name}_module_of_a_test")

    @hookimpl
    def register_settings() -> object:
        return list(models) if answer is None else answer()

    @hookimpl
    def register_system_detectors() -> list[type[Extension[Any]]]:
        return list(extensions)

    module.register_settings = register_settings
    module.register_system_detectors = register_system_detectors
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return EntryPoint(name, module.__name__, "gpustack")


def a_detector(label: str, settings: type[BaseModel]) -> type[SystemDetector[Any]]:
    """Return an extension class that takes ``settings``."""

    class Detector(SystemDetector[Any]):
        name = label
        settings_type = settings

        def present(self) -> Verdict:
            return Verdict.no("it is for tests")

        async def measure(self, paths: Sequence[Path]) -> SystemReading:
            raise NotImplementedError

    return Detector
