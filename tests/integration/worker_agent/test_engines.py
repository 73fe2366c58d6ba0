"""Engines that the server asks for, on a worker with the real installer, pipx and uv, and an index on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.schemas import WorkerEnginePublic, engine_key
from gpustack.worker.artifacts import ArtifactInstaller
from support.packages import UV, Index, an_index

pytestmark = pytest.mark.skipif(not (UV / "uv").exists(), reason="there is no uv in .tools")
KIND = "worker-engines"
NOW = "2026-01-01T00:00:00Z"


@pytest.fixture
def index(tmp_path: Path, fleet: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index, for a worker that installs for real."""
    monkeypatch.setattr("gpustack.worker.agent.ArtifactInstaller", ArtifactInstaller)
    monkeypatch.setattr("gpustack.worker.engines._RETRY", (0.2, 0.2))
    with an_index(tmp_path / "index") as found:
        for name, value in found.environ(tmp_path, uv=True).items():
            monkeypatch.setenv(name, value)
        yield found


def ask(server: Any, state: str = "pending", *, request: int = 1, **fields: Any) -> None:
    name = {"backend": "fake", "version": "1", "packages": [], **fields}
    row = {
        "id": 1,
        "worker_id": 1,
        "state": state,
        "request": request,
        "created_at": NOW,
        "updated_at": NOW,
        "engine_key": engine_key(**name),
        **name,
    }
    server.put(KIND, WorkerEnginePublic.model_validate(row).model_dump(mode="json"))


def state(server: Any) -> str:
    return str(server.things[KIND][1]["state"])


async def test_an_engine_is_installed_when_the_server_asks_and_removed_again(
    fleet: Any, server: Any, until: Any, index: Index
) -> None:
    index.add("fake", "1", command="fake")
    index.add("dep", "2.0")
    ask(server, packages=["dep==2.0"])
    await fleet.start()

    await until(lambda: state(server) == "installed", seconds=40)

    said = [report["state_message"] for kind, _, report in server.reports if kind == KIND]
    assert "installing fake 1 with dep==2.0 with pipx" in said
    await until(lambda: server.inventories[-1])
    (held,) = server.inventories[-1]
    assert (held["backend"], held["version"], held["packages"]) == ("fake", "1", ["dep==2.0"])
    assert held["disk"] > 10_000
    assert held["unused_seconds"] < 60

    (command,) = [path for path in fleet.config.bin_dir.iterdir() if path.is_symlink()]
    python = command.resolve().parent / "python"
    with subprocess.Popen([python, "-c", "import time; time.sleep(60)"]) as process:
        ask(server, "removing", request=2, packages=["dep==2.0"])
        await until(lambda: "in use by process" in server.last(1, KIND).get("state_message", ""))
        assert state(server) == "installed"
        process.kill()
    ask(server, "removing", request=3, packages=["dep==2.0"])

    await until(lambda: not server.things[KIND])
    await until(lambda: server.inventories[-1] == [])
    assert list(fleet.config.bin_dir.iterdir()) == []


async def test_what_is_being_installed_goes_on_when_it_is_asked_for_again(
    fleet: Any, server: Any, until: Any, index: Index
) -> None:
    index.add("fake", "1", command="fake")
    index.slow = 1.5
    ask(server)
    await fleet.start()
    await until(lambda: index.asked, seconds=40)

    ask(server, request=2)

    await until(lambda: state(server) == "installed", seconds=40)
    said = [report["state_message"] for kind, _, report in server.reports if kind == KIND]
    assert said.count("installing fake 1 with pipx") == 1
    assert server.last(1, KIND)["request"] == 2


@pytest.mark.slow
async def test_an_index_that_comes_back_is_asked_again_and_a_wrong_version_is_not(
    fleet: Any, server: Any, until: Any, index: Index
) -> None:
    index.add("fake", "1", command="fake")
    index.down = True
    ask(server)
    await fleet.start()

    await until(lambda: "; trying again in " in server.last(1, KIND).get("state_message", ""), seconds=40)
    assert state(server) == "installing"
    index.down = False
    await until(lambda: state(server) == "installed", seconds=40)

    ask(server, version="7")
    await until(lambda: state(server) == "error", seconds=40)
    assert "the package index has no fake==7" in server.last(1, KIND)["state_message"]
    told = len(server.reports)
    await asyncio.sleep(0.6)
    assert len(server.reports) == told


async def test_a_backend_that_is_not_here_is_said(fleet: Any, server: Any, until: Any, index: Index) -> None:
    ask(server, backend="nope")
    await fleet.start()

    await until(lambda: state(server) == "error")

    said = server.last(1, KIND)["state_message"]
    assert said == "backend 'nope' is not installed on this worker; it has: fake"


@pytest.mark.slow
async def test_what_was_being_installed_when_the_worker_ended_is_taken_up(
    fleet: Any, server: Any, until: Any, index: Index
) -> None:
    index.add("fake", "1", command="fake")
    index.slow = 60
    ask(server)
    await fleet.start()
    await until(lambda: index.asked, seconds=40)
    await fleet.stop()
    index.slow = 0

    await fleet.start()

    await until(lambda: state(server) == "installed", seconds=40)


@pytest.mark.slow
async def test_what_nobody_wants_or_uses_goes_after_its_time(
    fleet: Any, server: Any, until: Any, index: Index
) -> None:
    index.add("fake", "1", command="fake")
    server.wanted = [{"backend": "fake", "version": "1", "packages": []}]
    ask(server)
    await fleet.start(unused_engines=1.0)
    await until(lambda: state(server) == "installed", seconds=40)
    installed = time.monotonic()
    command = fleet.config.bin_dir / "fake_1"
    await asyncio.sleep(2)
    assert command.exists(), "a model wants it"

    python = command.resolve().parent / "python"
    server.wanted = []
    with subprocess.Popen([python, "-c", "import time; time.sleep(60)"]) as process:
        await asyncio.sleep(2)
        assert command.exists(), "something runs from it"
        process.kill()

    await until(lambda: not command.exists(), seconds=20)
    assert time.monotonic() - installed > 4
    await until(lambda: server.inventories[-1] == [])
    assert [each for each in (fleet.config.data_dir / "pipx" / "venvs").iterdir() if each.is_dir()] == []
