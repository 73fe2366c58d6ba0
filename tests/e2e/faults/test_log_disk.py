"""Logs are worth something, but nothing waits for the disk that holds them, and nothing ends because it is full."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, gpustack

pytestmark = pytest.mark.xdist_group("e2e-faults")

ROLES = ("server", "worker", "door")


@contextlib.contextmanager
def hung(log_dir: Path) -> Iterator[None]:
    """Let every write to our own logs block for ever: each is a pipe that is full and that nobody reads."""
    log_dir.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for role in ROLES:
            path = log_dir / f"{role}.log"
            os.mkfifo(path)
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, fd)
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(fd, b"x")
        yield


def works(running: Running, model: Path) -> None:
    """Deploy, chat, look at it all, kill the engine, and stop."""
    running.cli("deploy", str(model), "--name", "tiny", "--timeout", "60")
    assert running.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
    (instance,) = json.loads(running.cli("ps", "--json").stdout)
    assert instance["state"] == "running"
    with running.admin() as admin:
        for _ in range(50):
            assert admin.get("/v2/models/4711").status_code == 404
            assert admin.get("/v2/workers").json()["items"][0]["state"] == "ready"
    running.cli("stop")
    assert running.own_processes() == []


@pytest.mark.slow
def test_a_log_disk_that_hangs_holds_nobody_up(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> None:
    logs = place / "hung logs"
    flags = [
        "--bin-dir",
        str(engine.bin_dir),
        "--service-port-range",
        a_port_range(4),
        "--log-dir",
        str(logs),
    ]
    with hung(logs), gpustack(place / "hung", place / "hung home", flags) as running:
        works(running, tiny_gguf)


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of its own, of one megabyte and full."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = place / "small disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_log_disk_that_is_full_ends_nobody(
    place: Path, engine: InstalledEngine, tiny_gguf: Path, small_disk: Path
) -> None:
    ports = a_port_range(4)
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", ports, "--log-dir", str(small_disk)]
    with gpustack(place / "full logs", place / "full logs home", flags) as running:
        works(running, tiny_gguf)
