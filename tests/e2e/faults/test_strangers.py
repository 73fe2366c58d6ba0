"""Ports and process numbers that belong to somebody else, and two who want the same name at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from support.engine import InstalledEngine
from support.house import a_house
from support.running import a_port_range, eventually, free_ports, gpustack, spawn

pytestmark = pytest.mark.xdist_group("e2e-faults")


def test_a_worker_port_that_is_taken_is_named(place: Path) -> None:
    (port,) = free_ports(1)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        running = spawn(place / "worker port", place / "worker port home", ["--worker-port", str(port)])
        # SIGCONT changes nothing: the process ends by itself.
        assert running.end(signal.SIGCONT, timeout=60) == 2
    assert f"port {port}" in running.output
    assert "--worker-port" in running.output
    assert "Traceback" not in running.output


@pytest.mark.slow
def test_a_stranger_who_takes_a_dead_engines_port_is_asked_nothing(
    place: Path, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(place / "port", place / "port home", flags) as running, socket.socket() as stranger:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        (before,) = json.loads(running.cli("ps", "--json").stdout)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        psutil.Process(before["pid"]).kill()
        eventually(lambda: bound(stranger, before["port"]), "the port is free for a moment")
        stranger.listen()

        def again() -> bool:
            (now,) = json.loads(running.cli("ps", "--json").stdout)
            return now["state"] == "running" and now["pid"] != before["pid"]

        eventually(again, "the engine runs on another port", seconds=60)
        assert running.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
        (after,) = json.loads(running.cli("ps", "--json").stdout)
        assert after["port"] != before["port"]


def bound(sock: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False


@pytest.mark.slow
def test_a_stranger_with_a_recorded_number_is_neither_adopted_nor_killed(
    place: Path, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with a_house(place / "number", place / "number home", flags) as house:
        house.running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        house.cut_power()
        with subprocess.Popen(["sleep", "600"], cwd="/", start_new_session=True) as stranger:
            try:
                (record,) = (house.data_dir / "run" / "instances").glob("*.json")
                record.write_text(json.dumps({**json.loads(record.read_text()), "pid": stranger.pid}))
                house.start()
                house.wait_whole(1)
                assert house.running.cli(
                    "chat", "tiny", "--once", "Hello", "--max-tokens", "4"
                ).stdout.strip()
                assert house.pid("engine") != stranger.pid
                house.stop()
                assert stranger.poll() is None
            finally:
                os.kill(stranger.pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_same_name_twice_at_once_is_given_once(place: Path) -> None:
    with gpustack(place / "twice", place / "twice home", ["--disable-worker"]) as running:
        with running.admin() as admin, ThreadPoolExecutor(8) as pool:

            def create(_: int) -> int:
                body = {"name": "twice", "local_path": "/m.gguf", "replicas": 0}
                return int(admin.post("/v2/models", json=body).status_code)

            answers = list(pool.map(create, range(16)))
            assert sorted(answers) == [201, *[409] * 15]
            assert admin.get("/v2/models").json()["pagination"]["total"] == 1
