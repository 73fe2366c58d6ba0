"""``gpustack restart``: our processes are new afterwards, engines and clients notice nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest

from support.engine import InstalledEngine
from support.running import (
    COMMAND,
    QUIET,
    Running,
    a_port_range,
    eventually,
    free_ports,
    gpustack,
    processes_of,
    wait_ready,
)

pytestmark = pytest.mark.xdist_group("e2e-restart")


class Asking:
    """Asks again and again in the background, a connection each, and counts what failed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.is_set():
            try:
                httpx.get(self._url, timeout=60).raise_for_status()
                self.answered += 1
            except httpx.HTTPError as error:
                self.failed.append(repr(error))


@pytest.fixture(scope="module")
def settings(place: Path) -> Path:
    """The configuration file, which tests change."""
    file = place / "restart.yaml"
    file.write_text("debug: false\n")
    return file


@pytest.fixture(scope="module")
def version(place: Path) -> Path:
    """A file whose content is the version of the installed program."""
    folder = place / "installed"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import pathlib, gpustack\n"
        "gpustack.__version__ = pathlib.Path(__file__).with_name('version').read_text()\n"
    )
    (folder / "version").write_text("0.1.0")
    return folder / "version"


@pytest.fixture(scope="module")
def stack(
    place: Path, engine: InstalledEngine, tiny_gguf: Path, settings: Path, version: Path
) -> Iterator[Running]:
    """A GPUStack with one model, whose program can be changed."""
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    flags += ["--config-file", str(settings)]
    env = {"PYTHONPATH": str(version.parent)}
    with gpustack(place / "restart data", place / "restart home", flags, env=env) as running:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        yield running


def pids(running: Running) -> dict[str, int]:
    return {name: child["pid"] for name, child in running.state()["children"].items()}


def engine_pid(running: Running) -> int:
    (instance,) = json.loads(running.cli("ps", "--json").stdout)
    return int(instance["pid"])


def zombies_of(running: Running) -> list[psutil.Process]:
    children = psutil.Process(running.process.pid).children()
    return [each for each in children if each.status() == psutil.STATUS_ZOMBIE]


def test_everything_but_engines_is_new_and_nobody_is_refused(stack: Running) -> None:
    before, engine = pids(stack), engine_pid(stack)
    with Asking(f"{stack.url}/readyz") as asking:
        done = json.loads(stack.cli("restart", "--json").stdout)
        now = asking.answered
        eventually(lambda: asking.answered > now or asking.failed, "it answers", seconds=60)
    after = pids(stack)

    assert done["restarted"] is True
    assert asking.failed == []
    assert all(before[name] != after[name] for name in ("postgres", "server", "worker", "door"))
    assert stack.process.poll() is None
    assert stack.state()["pid"] == stack.process.pid
    assert engine_pid(stack) == engine
    assert stack.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
    assert "restarted in" in stack.cli("restart").stdout
    eventually(lambda: not zombies_of(stack), "every retired door's end is fetched", seconds=60)


def test_a_wrong_setting_is_said_before_anything_is_touched(stack: Running, settings: Path) -> None:
    before = pids(stack)
    settings.write_text("debug: maybe\nporrt: 80\n")
    try:
        refused = stack.cli("restart", check=False)
    finally:
        settings.write_text("debug: false\n")
    assert refused.returncode == 2
    assert "porrt" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert pids(stack) == before


@pytest.mark.slow
def test_what_is_installed_now_is_what_runs_afterwards(stack: Running, version: Path) -> None:
    engine = engine_pid(stack)
    version.write_text("0.1.1")
    assert "0.1.1" in stack.cli("restart").stdout
    assert stack.state()["version"] == "0.1.1"
    assert engine_pid(stack) == engine

    before = pids(stack)
    version.write_text("0.1.0")
    refused = stack.cli("restart", check=False)
    assert refused.returncode == 1
    assert "newer" in refused.stderr
    assert pids(stack) == before

    customize = version.with_name("sitecustomize.py")
    works = customize.read_text()
    version.write_text("0.1.1")
    customize.write_text(works + "import sys\nsys.modules['gpustack.server.app'] = None\n")
    refused = stack.cli("restart", check=False)
    customize.write_text(works)
    assert refused.returncode == 1
    assert "does not run" in refused.stderr
    assert pids(stack) == before


def test_nothing_to_restart_is_said(stack: Running) -> None:
    done = stack.cli("restart", "--data-dir", str(stack.home / "nothing"), check=False)
    assert done.returncode == 3
    assert "gpustack start" in done.stderr


@pytest.fixture
def by_file(place: Path, engine: InstalledEngine) -> Iterator[tuple[Running, Path]]:
    """A GPUStack whose ports only its configuration file names, and that file."""
    port, worker_port = free_ports(2)
    file, data_dir = place / "ports.yaml", place / "ports data"
    file.write_text(f"port: {port}\napi_port: 0\nworker_port: {worker_port}\n")
    env = {**os.environ, "HOME": str(place), "NO_COLOR": "1", **QUIET}
    process = subprocess.Popen(
        [COMMAND, "start", "--config-file", str(file), "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=place,
    )  # fmt: skip
    running = Running(f"http://127.0.0.1:{port}", data_dir, place, process, _env=env)
    try:
        yield wait_ready(running), file
    finally:
        running.end()
        for left in processes_of(data_dir):
            left.kill()


def test_another_port_is_opened_and_the_old_one_closed(by_file: tuple[Running, Path]) -> None:
    running, file = by_file
    before, (port, worker_port) = pids(running), free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file.write_text(f"port: {port}\napi_port: 0\nworker_port: {taken.getsockname()[1]}\n")
        refused = running.cli("restart", check=False)
        assert refused.returncode == 2
        assert f"worker_port in {file}, line 3" in refused.stderr
        assert pids(running) == before

    old = running.state()["ports"]
    file.write_text(f"port: {port}\nworker_port: {worker_port}\n")
    running.cli("restart")
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{worker_port}/healthz", timeout=30).text == "ok"
    for closed in (old["http"], old["door"]):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{closed}/healthz", timeout=30)
    assert running.cli("stop").returncode == 0
    assert processes_of(running.data_dir) == []
