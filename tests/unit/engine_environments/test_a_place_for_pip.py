"""Where no pip is at hand, one environment is made for all installs that need it, and never under one that uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gpustack.worker.artifacts import pins
from gpustack.worker.artifacts.errors import InstallError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(pins, "_bundled_pip", lambda: None)


@pytest.mark.usefixtures("bare")
async def test_two_installs_make_it_once(tmp_path: Path) -> None:
    made: list[str] = []

    async def run(command: list[str], _what: str) -> int:
        made.append(command[-1])
        python = Path(command[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        await asyncio.sleep(0.05)
        return 0

    one, two = await asyncio.gather(pins.a_pip(tmp_path, run), pins.a_pip(tmp_path, run))

    assert made == [str(tmp_path / "pip")]
    assert one == two == await pins.a_pip(tmp_path, run)
    assert len(made) == 1


@pytest.mark.usefixtures("bare")
async def test_one_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    python = tmp_path / "pip" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()

    async def fails(_command: list[str], _what: str) -> int:
        return 1

    with pytest.raises(InstallError, match="cannot make virtual environments"):
        await pins.a_pip(tmp_path, fails)
    assert not python.exists()
