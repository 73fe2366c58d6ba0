"""Settings whose ports and places are right, so that a test makes wrong what it is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpustack.app.checks import Examined, examine, ports
from gpustack.extensions import load_catalogue
from support.running import free_ports
from support.settings import forget_variables

Look = Callable[..., Examined]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither variables, nor a system that gives our ports away."""
    forget_variables(monkeypatch)
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "nowhere")


@pytest.fixture(scope="session")
def free() -> dict[str, str]:
    """Ports that are free now."""
    names = ("port", "api_port", "worker_port", "tls_port")
    return dict(zip(names, map(str, free_ports(len(names))), strict=True))


@pytest.fixture
def look(free: dict[str, str], tmp_path: Path) -> Look:
    """Examine the flags; ports and the data directory are right unless they are given."""
    options = load_catalogue().options

    def looking(**flags: str) -> Examined:
        given = {"data_dir": str(tmp_path / "data"), **free, **flags}
        return examine({name: text for name, text in given.items() if text}, options)

    return looking
