"""The supervisor's children and their end: what fails with one takes nothing else with it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
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
from gpustack.worker.artifacts.folders import MARKER

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


#: Ends at once, and leaves a program that holds its pipe.
LEAVES = """\
import os, subprocess, sys
fd = int(sys.argv[1])
os.write(fd, b"READY\\n")
print(subprocess.Popen(["sleep", "60"], pass_fds=[fd], start_new_session=True).pid, flush=True)
"""


async def test_what_a_child_has_left_holds_up_no_new_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_LAST_WORDS", 0.1)
    monkeypatch.setattr(
        children, "role_command", lambda _name, _place, fd, *_, **__: [sys.executable, "-c", LEAVES, str(fd)]
    )
    said: list[str] = []
    child = a_child(tmp_path, said)
    running = asyncio.create_task(child.run())
    try:
        await until(lambda: child.describe()["restarts"] >= 1, seconds=10)
    finally:
        running.cancel()
        await child.stop(5)
        await asyncio.gather(running, return_exceptions=True)
        for pid in (tmp_path / "log" / "server.log").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert "exited with status 0" in said[0]


#: A role that does nothing but start a program, as it starts those that install; it tells what that has open.
STARTS = """\
import json, os, pathlib, sys
from gpustack.app import child
from gpustack.worker.artifacts.child import run_child
async def run(configuration, sockets, parent):
    script = 'for fd in /proc/self/fd/*; do readlink $fd; done'
    here = pathlib.Path(sys.argv[3])
    await run_child(["sh", "-c", script], env=dict(os.environ), cwd=here, output=here / "open", timeout=30)
child._role = lambda name: run
sys.exit(child.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_role_starts_has_none_of_its_pipe_and_sockets(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = {"ready_fd": writer, "sockets": {"http": listener.fileno()}, "parent": None}
        done = subprocess.run(
            [sys.executable, "-c", STARTS, "worker", json.dumps(arguments), str(tmp_path)],
            input=json.dumps({"settings": {"debug": False}}) + "\n",
            pass_fds=[writer, listener.fileno()],
            text=True,
            check=False,
        )
        ours = {str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (writer, listener.fileno())}
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0
    opened = (tmp_path / "open").read_text().splitlines()
    assert opened
    assert not ours & set(opened)


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
    (tmp_path / "pipx").mkdir()
    (note := tmp_path / "pipx" / ".acme_1.busy").touch()
    install = subprocess.Popen(["sleep", "60"], env=os.environ | {MARKER: str(note)}, start_new_session=True)
    units: Any = [server, door, worker, database]
    await Ending(tmp_path, units, [], asyncio.Event()).everything(leave_door=False, leave_engines=False)
    assert all(unit.stopped for unit in units)
    assert install.wait(5) == -signal.SIGTERM
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
