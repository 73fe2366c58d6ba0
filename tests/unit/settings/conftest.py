"""An environment without settings of whoever runs the tests, and the options of the installed plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.extensions import load_catalogue
from gpustack.settings.declared import Options
from support.settings import forget_variables


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_variables(monkeypatch)


@pytest.fixture(scope="session")
def options() -> Options:
    """Every option that is declared here, those of our plugins included."""
    catalogue = load_catalogue()
    assert not catalogue.failures
    return catalogue.options


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"
