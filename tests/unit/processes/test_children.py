"""The supervisor's children and their end: what fails with one takes nothing else with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpustack.app import children, disks, restart
from gpustack.app.children import PythonChild, open_log
from gpustack.app.disks import Disks
from gpustack.app.ending import Ending
from gpustack.kit.errors import GPUStackError

ROLE = "import os, sys; os.write(int(sys.argv[1]), b'READY\\n'); sys.stdin.readline(); print('was here')"


async def until(true: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def a_child(place: Path, said: list[str]) -> PythonChild:
    async def configuration() -> dict[str, Any]:
        await asyncio.sleep(0.1)  # it reads the line that this makes, and ends
        return {}

    return PythonChild(
        "server", place, configuration=configuration,  # type: ignore[arg-type]
        sockets={}, log_path=place / "log" / "server.log", say=said.append, changed=lambda: None,
    )  # fmt: skip


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The times that a child was started; the second cannot be."""
    found: list[int] = []

    def command(name: str, place: Path, fd: int, *_: Any, **__: Any) -> list[str]:
        found.append(fd)
        return ["/nowhere/python"] if len(found) == 2 else [sys.executable, "-c", ROLE, str(fd)]

    monkeypatch.setattr(children, "role_command", command)
    return found


async def test_a_start_that_fails_once_it_was_ready_is_tried_again(tmp_path: Path, starts: list[int]) -> None:
    said: list[str] = []
    child = a_child(tmp_path, said)
    running = asyncio.create_task(child.run())
    await child.ready()
    shutil.rmtree(tmp_path / "log")
    await until(lambda: len(starts) >= 4)
    assert not running.done()
    assert "cannot be started" in said[1]
    assert "was here" in (tmp_path / "log" / "server.log").read_text()
    running.cancel()
    # In this order, as the supervisor does it: what listens to the process ends with the process.
    await child.stop(5)
    await asyncio.gather(running, return_exceptions=True)


async def test_a_child_that_cannot_be_started_at_all_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "role_command", lambda *_, **__: ["/nowhere/python"])
    said: list[str] = []
    with pytest.raises(GPUStackError, match="server cannot be started"):
        await a_child(tmp_path, said).run()


def test_a_log_that_cannot_be_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with open_log(tmp_path / "file" / "server.log") as log:
        assert log.name == os.devnull


class _Unit:
    """Something that ends, or does not."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self._error, self.stopped = name, error, False

    async def stop(self, grace: float) -> None:
        self.stopped = True
        if self._error is not None:
            raise self._error


async def test_whatever_does_not_end_the_rest_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, door = _Unit("server", OSError(30, "Read-only file system")), _Unit("door", ValueError("odd"))
    worker, database = _Unit("worker"), _Unit("postgres")
    (tmp_path / "run" / "memories").mkdir(parents=True)
    units: Any = [server, door, worker, database]
    await Ending(tmp_path, units, [], asyncio.Event()).everything(leave_door=False, leave_engines=False)
    assert all(unit.stopped for unit in units)
    assert not (tmp_path / "run" / "memories").exists()
    told = capsys.readouterr().err
    assert "server did not end as it should (OSError: [Errno 30] Read-only file system)" in told
    assert "door did not end" in told


async def test_settings_that_cannot_be_read_now_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart.sys, "executable", "/nowhere/python")
    with pytest.raises(GPUStackError, match="the settings cannot be read"):
        await restart.settings_now({}, tmp_path)


async def test_a_full_disk_is_said_once_however_much_lies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "FULL", 1 << 80)
    said: list[str] = []
    (tmp_path / "cache").mkdir()
    places = {"data directory": tmp_path, "cache directory": tmp_path / "cache", "other": Path("/proc")}
    looking = asyncio.create_task(Disks(places, said.append, lambda: None).run())
    await until(lambda: len(said) >= 2)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    assert [line.split(" is full")[0] for line in said] == [
        f"the disk of the data directory {tmp_path}",
        "the disk of the other /proc",
    ]
