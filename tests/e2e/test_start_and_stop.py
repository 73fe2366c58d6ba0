"""Coming up, saying so, and leaving nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import stat
import time
from pathlib import Path

import httpx
import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, gpustack, processes_of, spawn, wait_ready

pytestmark = pytest.mark.xdist_group("e2e-start")


def assert_port_free(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen()


def test_ready_says_where_and_what_next(stack: Running) -> None:
    assert stack.url.rpartition(":")[2] in stack.output
    password = stack.data_dir / "initial_admin_password"
    assert str(password) in stack.output
    assert "deploy" in stack.output
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    with httpx.Client(base_url=stack.url) as browser:
        form = {"username": "admin", "password": password.read_text().strip()}
        assert browser.post("/auth/login", data=form).status_code == 200
        assert browser.get("/v2/users/me").json()["username"] == "admin"
        assert browser.get("/readyz").status_code == 200
        assert browser.head("/healthz").status_code == 200
        assert browser.get("/").headers["location"] == "/docs"


def test_status_tells_what_runs(stack: Running) -> None:
    state = json.loads(stack.cli("status", "--json").stdout)
    assert state["ready"] is True
    assert {"postgres", "server", "gateway", "worker", "door"} <= set(state["children"])
    assert "server" in stack.cli("status").stdout


def test_a_second_start_on_the_same_directory_is_refused_in_one_line(stack: Running) -> None:
    second = spawn(stack.data_dir, stack.home)
    assert second.end(signal.SIGCONT) == 1
    assert "in use by process" in second.output
    assert "Traceback" not in second.output


def test_a_taken_port_is_named(stack: Running, place: Path) -> None:
    taken = int(stack.url.rpartition(":")[2])
    other = spawn(place / "taken data", stack.home, port=taken)
    assert other.end(signal.SIGCONT) == 2
    assert f"port {taken}" in other.output
    assert "(process " in other.output
    assert "--port" in other.output


def test_a_killed_server_comes_back_without_refusing_anyone(stack: Running) -> None:
    import psutil

    psutil.Process(stack.state()["children"]["server"]["pid"]).kill()
    assert httpx.get(f"{stack.url}/readyz", timeout=30).status_code == 200
    assert stack.state()["children"]["server"]["restarts"] >= 1


@pytest.mark.parametrize("how", ["command", pytest.param("interrupt", marks=pytest.mark.slow)])
def test_stop_leaves_nothing_behind(place: Path, engine: InstalledEngine, tiny_gguf: Path, how: str) -> None:
    data_dir, ports = place / f"stop {how}", a_port_range(4)
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", ports]
    with gpustack(data_dir, place / f"home {how}", flags) as running:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        assert len(processes_of(data_dir)) >= 5
        began = time.monotonic()
        if how == "command":
            running.cli("stop")
        assert running.end(signal.SIGINT) == 0
        assert time.monotonic() - began < 10
        assert processes_of(data_dir) == []
        assert_port_free(int(running.url.rpartition(":")[2]))
        for port in range(*map(int, ports.split("-"))):
            assert_port_free(port)
        assert not (data_dir / "run" / "supervisor.json").exists()
        assert running.cli("status", check=False).returncode == 3
    with gpustack(data_dir, place / f"home {how}", flags) as again:
        assert json.loads(again.cli("ls", "--json").stdout)[0]["name"] == "tiny"


def test_after_the_supervisors_death_engines_serve_on_and_are_adopted(
    place: Path, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    import psutil

    data_dir, home = place / "killed", place / "home killed"
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    running = wait_ready(spawn(data_dir, home, flags))
    try:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        (before,) = json.loads(running.cli("ps", "--json").stdout)
        children = [
            psutil.Process(child["pid"])
            for name, child in running.state()["children"].items()
            if name not in ("door", "gateway")
        ]
        running.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
        assert httpx.get(f"http://127.0.0.1:{before['port']}/health").status_code == 200
        # The gateway goes on, too.
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        with gpustack(data_dir, home, flags) as again:
            assert again.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
            (after,) = json.loads(again.cli("ps", "--json").stdout)
            assert (after["pid"], after["state"]) == (before["pid"], "running")
        assert processes_of(data_dir) == []
    finally:
        for process in processes_of(data_dir):
            process.kill()


def test_stop_ends_what_a_killed_supervisor_left(
    place: Path, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    data_dir, home = place / "left", place / "home left"
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    running = wait_ready(spawn(data_dir, home, flags))
    running.cli("deploy", str(tiny_gguf), "--name", "tiny")
    running.end(signal.SIGKILL)
    assert processes_of(data_dir)
    assert running.cli("stop").returncode == 0
    assert processes_of(data_dir) == []


@pytest.mark.slow
def test_a_moved_machine_still_answers(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> None:
    data_dir, home = place / "moved", place / "home moved"
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(data_dir, home, [*flags, "--advertise-address", "127.0.0.5"]) as running:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
    with gpustack(data_dir, home, [*flags, "--advertise-address", "127.0.0.6"]) as again:
        again.cli("deploy", str(tiny_gguf), "--name", "other")
        for name in ("tiny", "other"):
            assert again.cli("chat", name, "--once", "Hello", "--max-tokens", "4").stdout.strip()
