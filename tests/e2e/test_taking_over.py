"""What is killed is taken over by what comes next: sockets, door and engines; nobody is refused meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gpustack.kit.process import identify, pid_space
from gpustack.worker.runners.environment import engine_environment
from gpustack.worker.runners.records import EngineRecord, record_path, write_record
from support.engine import InstalledEngine
from support.running import (
    Running,
    a_port_range,
    eventually,
    free_ports,
    gpustack,
    processes_of,
    spawn,
    wait_ready,
)

pytestmark = pytest.mark.xdist_group("e2e-taking-over")


def pid_of(running: Running, child: str) -> int:
    return int(running.state()["children"][child]["pid"])


class Later:
    """A request in the background; ``answer`` is its status, or what went wrong."""

    def __init__(self, url: str) -> None:
        self.answer: Any = None
        self._thread = threading.Thread(target=self._ask, args=(url,))
        self._thread.start()

    def _ask(self, url: str) -> None:
        try:
            self.answer = httpx.get(url, timeout=60).status_code
        except httpx.HTTPError as error:
            self.answer = error

    def wait(self) -> Any:
        self._thread.join(60)
        return self.answer


@pytest.fixture
def flags(engine: InstalledEngine) -> list[str]:
    return ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]


@pytest.fixture
def data_dir(place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data directory, with nothing left running in it afterwards."""
    path = place / request.node.name
    yield path
    for process in processes_of(path):
        process.kill()


def test_requests_between_a_supervisors_death_and_the_next_start_are_answered(
    data_dir: Path, place: Path, flags: list[str], tiny_gguf: Path
) -> None:
    port = free_ports(1)[0]
    running = wait_ready(spawn(data_dir, place, flags, port=port))
    running.cli("deploy", str(tiny_gguf), "--name", "tiny")
    (before,) = json.loads(running.cli("ps", "--json").stdout)
    door, worker_port = pid_of(running, "door"), running.state()["ports"]["door"]
    children = [psutil.Process(pid_of(running, name)) for name in ("postgres", "server", "worker")]
    running.end(signal.SIGKILL)
    assert not psutil.wait_procs(children, timeout=20)[1]
    waiting = [Later(f"{running.url}/readyz") for _ in range(5)]
    assert httpx.get(f"http://127.0.0.1:{worker_port}/healthz", timeout=20).text == "ok"

    with gpustack(data_dir, place, flags, port=port) as again:
        assert [each.wait() for each in waiting] == [200] * 5
        assert pid_of(again, "door") == door
        assert again.state()["ports"]["door"] == worker_port
        (after,) = json.loads(again.cli("ps", "--json").stdout)
        assert after["pid"] == before["pid"]
        assert again.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
        assert again.cli("logs", "tiny", "--tail", "5").stdout
    assert processes_of(data_dir) == []


def test_supervisor_and_door_killed_together_start_on_the_same_ports(
    data_dir: Path, place: Path, flags: list[str]
) -> None:
    ports = free_ports(2)
    flags += ["--worker-port", str(ports[1])]
    running = wait_ready(spawn(data_dir, place, flags, port=ports[0]))
    door = psutil.Process(pid_of(running, "door"))
    with httpx.Client(base_url=running.url, timeout=30) as client:
        client.get("/readyz")  # a connection that is open as they die leaves its port behind for a minute
        running.process.kill()
        door.kill()
        running.end(signal.SIGKILL)
        with gpustack(data_dir, place, flags, port=ports[0]) as again:
            assert httpx.get(f"{again.url}/readyz", timeout=30).status_code == 200
            assert pid_of(again, "door") != door.pid
            assert [path.stem for path in (data_dir / "run" / "doors").glob("*.json")] == [
                str(pid_of(again, "door"))
            ]


@pytest.mark.slow
def test_settings_with_other_ports_close_the_old_ones(data_dir: Path, place: Path, flags: list[str]) -> None:
    old, new, *workers = free_ports(4)
    running = wait_ready(spawn(data_dir, place, [*flags, "--worker-port", str(workers[0])], port=old))
    running.end(signal.SIGKILL)
    with gpustack(data_dir, place, [*flags, "--worker-port", str(workers[1])], port=new) as again:
        assert again.state()["ports"]["door"] == workers[1]
        for closed in (old, workers[0]):
            eventually(lambda port=closed: refuses(port), f"port {closed} is closed", seconds=20)


def refuses(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False


def test_a_killed_door_comes_back_without_refusing_anyone(
    data_dir: Path, place: Path, flags: list[str]
) -> None:
    with gpustack(data_dir, place, flags) as running:
        door, port = pid_of(running, "door"), running.state()["ports"]["door"]
        psutil.Process(door).kill()
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=30).text == "ok"
        eventually(
            lambda: running.state()["children"]["door"]["pid"] not in (door, None), "another door", seconds=20
        )
        assert running.state()["children"]["door"]["restarts"] == 1


@pytest.mark.slow
def test_a_door_that_hangs_is_replaced_by_the_next_supervisor(
    data_dir: Path, place: Path, flags: list[str]
) -> None:
    running = wait_ready(spawn(data_dir, place, flags))
    door = psutil.Process(pid_of(running, "door"))
    running.end(signal.SIGKILL)
    door.suspend()
    with gpustack(data_dir, place, flags, port=int(running.url.rpartition(":")[2])) as again:
        assert pid_of(again, "door") != door.pid
        # Who has lost its parent is a zombie until the first process of the machine fetches its end.
        assert not door.is_running() or door.status() == psutil.STATUS_ZOMBIE


def test_a_start_that_fails_leaves_the_engines_that_it_found(
    data_dir: Path, place: Path, flags: list[str]
) -> None:
    run_dir = data_dir / "run"
    for folder in (run_dir / "instances", data_dir / "postgresql" / "data"):
        folder.mkdir(parents=True)
    (data_dir / "postgresql" / "data" / "thesis.txt").write_text("no database")
    env = engine_environment(os.environ, instance_id=7, record=str(record_path(run_dir, 7)))
    engine = subprocess.Popen(["sleep", "600"], env=env, start_new_session=True)
    try:
        who = identify(engine.pid)
        assert who is not None
        record = EngineRecord(
            instance_id=7, instance_name="tiny-7", port=1, log_path="", argv_digest="",
            pid=who.pid, started=who.started, pid_space=pid_space(),
        )  # fmt: skip
        write_record(run_dir, record)

        failing = spawn(data_dir, place, flags)
        assert failing.end(signal.SIGCONT) == 1
        assert "holds files but no PostgreSQL cluster" in failing.output
        assert [process.pid for process in processes_of(data_dir)] == [engine.pid]
        # Whoever wants them to end says so.
        failing.cli("stop", check=False)
        assert engine.wait(20) == -signal.SIGTERM
    finally:
        engine.kill()
        engine.wait()


def test_stop_ends_the_door_of_a_killed_supervisor(data_dir: Path, place: Path, flags: list[str]) -> None:
    running = wait_ready(spawn(data_dir, place, flags))
    ports = running.state()["ports"]
    running.end(signal.SIGKILL)
    assert processes_of(data_dir)
    assert running.cli("stop").returncode == 0
    assert processes_of(data_dir) == []
    assert all(refuses(ports[name]) for name in ("http", "door", "worker"))
    assert not [path for path in data_dir.rglob("*.sock") if path.exists()]


@pytest.mark.parametrize("killed", [pytest.param("worker", marks=pytest.mark.slow), "supervisor"])
def test_another_machines_engine_is_reached_through_its_door_whatever_dies_there(
    data_dir: Path, place: Path, flags: list[str], tiny_gguf: Path, killed: str
) -> None:
    """The other machine is an address of this one that the server does not take for its own."""
    there, other_port = place / f"{data_dir.name} there", free_ports(1)[0]
    with gpustack(data_dir, place, ["--disable-worker"]) as server:
        join = [
            "--server-url", server.url, "--token-file", str(data_dir / "token"), "--worker-name", "other",
            "--advertise-address", "127.0.0.9", "--worker-port", str(other_port), *flags,
        ]  # fmt: skip
        worker = wait_ready(spawn(there, place, join))
        try:
            assert set(worker.state()["children"]) == {"worker", "door"}
            server.cli("deploy", str(tiny_gguf), "--name", "tiny")
            assert server.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
            assert server.cli("logs", "tiny", "--tail", "5").stdout
            if killed == "worker":
                psutil.Process(pid_of(worker, "worker")).kill()
            else:
                worker.end(signal.SIGKILL)
            assert server.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
        finally:
            worker.cli("stop", "--data-dir", str(there))
            worker.end()
            for process in processes_of(there):
                process.kill()
