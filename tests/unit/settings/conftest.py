"""An environment without settings of whoever runs the tests, and the options of the installed plugins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpustack.extensions import load_catalogue
from gpustack.settings.declared import Options

_OTHERS = {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "POD_NAMESPACE"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GPUSTACK_") or name in _OTHERS:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def options() -> Options:
    """Every option that is declared here, those of our plugins included."""
    catalogue = load_catalogue()
    assert not catalogue.failures
    return catalogue.options


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"
