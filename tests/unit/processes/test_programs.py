"""Programs of a gateway: started, started again, ended with all that they have started, and with their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.app import children, programs
from gpustack.app.ending import Ending
from gpustack.app.gateway_units import gateway_units
from gpustack.app.programs import Program
from gpustack.kit.errors import GPUStackError
from gpustack.settings.gateway import ChosenGateway, GatewayProcess

#: Says where and what it is, starts another process, and goes on.
LIVES = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("working in", os.getcwd(), flush=True)
pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SETTLED", 0.05)


def a_program(place: Path, *argv: str, said: list[str] | None = None, **plan: Any) -> Program:
    return Program(
        "proxy-acme",
        GatewayProcess(kind="program", argv=argv or (sys.executable, "-c", LIVES), **plan),
        place=place / "place",
        log_path=place / "log" / "proxy-acme.log",
        say=(said if said is not None else []).append,
        changed=lambda: None,
    )


async def until(true: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


async def pids_in(place: Path) -> tuple[int, int]:
    file = place / "place" / "pids"
    await until(lambda: file.is_file() and len(file.read_text().split()) == 2)
    first, second = map(int, file.read_text().split())
    return first, second


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_it_runs_in_a_place_of_its_own_and_ends_with_all_that_it_started(tmp_path: Path) -> None:
    program = a_program(tmp_path)
    running = asyncio.create_task(program.run())
    await program.ready()
    own, child = await pids_in(tmp_path)
    assert program.describe() == {"pid": own, "state": "ready", "restarts": 0}
    running.cancel()
    await program.stop(5)
    await asyncio.gather(running, return_exceptions=True)
    assert gone(own)
    assert gone(child)
    assert program.describe()["state"] == "stopped"
    assert f"working in {tmp_path / 'place'}" in (tmp_path / "log" / "proxy-acme.log").read_text()


async def test_one_that_dies_is_started_again_without_what_it_has_left(tmp_path: Path) -> None:
    said: list[str] = []
    program = a_program(tmp_path, said=said)
    running = asyncio.create_task(program.run())
    await program.ready()
    own, child = await pids_in(tmp_path)
    (tmp_path / "place" / "pids").unlink()
    os.kill(own, signal.SIGKILL)
    again, _ = await pids_in(tmp_path)
    assert again != own
    assert gone(child)
    assert said[0].startswith("proxy-acme was killed by SIGKILL; starting it again in ")
    running.cancel()
    await program.stop(5)
    await asyncio.gather(running, return_exceptions=True)


async def test_one_that_is_not_there_is_told_of_in_a_line(tmp_path: Path) -> None:
    program = a_program(tmp_path, "no-such-proxy")
    with pytest.raises(
        GPUStackError, match=r"^proxy-acme cannot be started: there is no program no-such-proxy$"
    ):
        await program.run()


async def test_one_that_ends_at_once_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(programs, "SETTLED", 30.0)
    program = a_program(tmp_path, sys.executable, "-c", "print('port 80 is taken'); raise SystemExit(3)")
    with pytest.raises(GPUStackError, match=r"exited with status 3 before it was ready; its log is .*proxy"):
        await program.run()
    assert (tmp_path / "log" / "proxy-acme.log").read_text().count("port 80 is taken") == children.ATTEMPTS


async def test_what_it_sees_is_clean_and_what_its_plan_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_TOKEN", "very-secret")
    told = "import os, time; print(sorted(os.environ), os.environ.get('ACME'), flush=True); time.sleep(60)"
    program = a_program(tmp_path, sys.executable, "-c", told, env={"ACME": "of the plan"}, cwd=str(tmp_path))
    running = asyncio.create_task(program.run())
    log = tmp_path / "log" / "proxy-acme.log"
    await until(lambda: log.is_file() and "of the plan" in log.read_text())
    assert "GPUSTACK_TOKEN" not in log.read_text()
    assert "'PATH'" in log.read_text()
    assert not (tmp_path / "place").exists()
    running.cancel()
    program.kill()
    await asyncio.gather(running, return_exceptions=True)
    await program.stop(0)


async def test_a_restart_ends_it_and_leaves_the_gateways(tmp_path: Path) -> None:
    program = a_program(tmp_path)
    running = asyncio.create_task(program.run())
    await program.ready()
    own, _ = await pids_in(tmp_path)
    running.cancel()
    await Ending(tmp_path, [program], [running], asyncio.Event()).ours()
    assert gone(own)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells of a parent's death on Linux alone")
async def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    begin = (
        "import os, subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-P', '-m', 'gpustack.app.launch', str(os.getpid()), *sys.argv[1:]]); "
        "time.sleep(60)"
    )
    (tmp_path / "place").mkdir()
    program = [sys.executable, sys.executable, "-c", LIVES]
    with subprocess.Popen([sys.executable, "-c", begin, *program], cwd=tmp_path / "place") as supervisor:
        own, child = await pids_in(tmp_path)
        supervisor.kill()
    await until(lambda: gone(own))
    os.kill(child, signal.SIGKILL)  # what a program starts in turn is its own business then


def test_a_program_that_cannot_be_run_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "proxy").write_text("no program")
    (tmp_path / "proxy").chmod(0o755)
    words = [
        sys.executable,
        "-P",
        "-m",
        "gpustack.app.launch",
        str(os.getpid()),
        str(tmp_path / "proxy"),
        "proxy",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 126
    assert done.stderr.startswith(f"Error: {tmp_path / 'proxy'} cannot be run: ")


def test_what_a_gateway_declares_becomes_units(tmp_path: Path) -> None:
    gateway = ChosenGateway(
        name="acme",
        processes=(
            GatewayProcess(),
            GatewayProcess(kind="program", argv=("a",)),
            GatewayProcess(),
            GatewayProcess(kind="program", argv=("b",)),
        ),
    )
    settings = {"data_dir": str(tmp_path), "log_dir": str(tmp_path / "log"), "gateway": gateway.model_dump()}
    units = gateway_units(
        settings, mark="m", sockets={}, api_port=lambda: 1, say=lambda _: None, changed=lambda: None
    )
    assert [unit.name for unit in units] == ["gateway", "gateway-2", "proxy-acme", "proxy-acme-2"]
