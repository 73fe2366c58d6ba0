"""The command line run in this process against a scripted server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpustack.cli import main
from support.fake_api import FakeApi, fake_api


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Cli:
    """``cli("ls", "--json")`` as a shell would see it, but in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *args: str) -> Ended:
        self._capture.readouterr()
        status = main(args)
        said = self._capture.readouterr()
        assert "Traceback" not in said.out + said.err
        return Ended(status, said.out, said.err)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line of a user who has nothing yet: an empty home, no variables."""
    for name in ("GPUSTACK_SERVER", "GPUSTACK_API_KEY", "GPUSTACK_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUSTACK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Cli(capsys)


@pytest.fixture
def api(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """A server that the command line is pointed to."""
    with fake_api() as served:
        monkeypatch.setenv("GPUSTACK_SERVER", served.url)
        monkeypatch.setenv("GPUSTACK_API_KEY", "key")
        yield served
