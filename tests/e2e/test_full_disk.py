"""A disk without room: models go on, one line says it, and all is as before once there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, eventually, gpustack, spawn

pytestmark = [
    pytest.mark.xdist_group("e2e-full-disk"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]


@contextlib.contextmanager
def a_disk(size: str) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="gpustack-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", place], capture_output=True
    )
    if mounted.returncode != 0:
        place.rmdir()
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        place.rmdir()


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no byte free on the disk, however often somebody gives one back."""
    filler = disk / "filler"
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True)
        yield
    finally:
        filler.unlink()


def chats(running: Running) -> None:
    answer = running.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "2")
    assert answer.stdout.strip()


def the_engine(running: Running) -> int:
    with running.admin() as client:
        (instance,) = client.get("/v2/model-instances").json()["items"]
        assert instance["state"] == "running"
        return int(instance["pid"])


def write_until_refused(client: httpx.Client) -> httpx.Response:
    """Change a model until the database has no room for it."""
    for number in range(8000):
        body = client.get("/v2/models").json()["items"][0]
        changed = {"local_path": body["local_path"], "description": f"{number} {os.urandom(900).hex()}"}
        answer = client.put(f"/v2/models/{body['id']}", json=changed)
        if answer.status_code != 200:
            return answer
    raise AssertionError("the disk was never full")


def test_a_full_data_disk(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> None:
    flags = [
        "--bin-dir",
        str(engine.bin_dir),
        "--service-port-range",
        a_port_range(4),
        "--log-dir",
        str(place / "log"),
    ]
    with a_disk("260m") as disk, gpustack(disk / "data", place / "full home", flags) as running:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        before = the_engine(running)
        with filled(disk):
            with running.admin() as client:
                refusal = write_until_refused(client)
            assert refusal.status_code == 503
            assert refusal.headers["Retry-After"]
            assert "\n" not in refusal.json()["message"]
            chats(running)
            eventually(
                lambda: "is full" in running.cli("status", check=False).stdout + heard(running), "it says so"
            )
            chats(running)
        eventually(lambda: running.cli("status", check=False).returncode == 0, "ready again", seconds=60)
        assert the_engine(running) == before
        chats(running)
        running.cli("scale", "tiny", "1", check=False)
        # It looks every five seconds; models are served again before it has looked.
        eventually(lambda: "has room again" in heard(running), "it says that there is room", seconds=60)
        assert heard(running).count("disk of the data directory") == 2, running.output
        assert "Traceback" not in running.output
        running.cli("stop")
    assert not running.own_processes()


def heard(running: Running) -> str:
    """Return what it has said so far, without waiting for more."""
    assert running.process.stdout is not None
    os.set_blocking(running.process.stdout.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(running.process.stdout.fileno(), 65536):
            running.output += chunk.decode()
    os.set_blocking(running.process.stdout.fileno(), True)
    return running.output


@pytest.mark.slow
def test_a_full_log_disk(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> None:
    with a_disk("30m") as disk:
        flags = [
            "--bin-dir",
            str(engine.bin_dir),
            "--service-port-range",
            a_port_range(4),
            "--log-dir",
            str(disk),
        ]
        with gpustack(place / "logs full", place / "logs full home", flags) as running, filled(disk):
            eventually(lambda: "the disk of the log directory" in heard(running), "it says so")
            running.cli("deploy", str(tiny_gguf), "--name", "tiny")
            chats(running)
            status = running.cli("status")
            assert "Warning: the disk of the log directory" in status.stdout


@pytest.mark.parametrize("size", ["1m", "40m"])
def test_a_start_on_a_full_disk_ends_with_one_line(place: Path, size: str) -> None:
    with a_disk(size) as disk:
        (disk / "data").mkdir()
        with filled(disk):
            running = spawn(disk / "data", place / "start home", ["--log-dir", str(place / "start log")])
            assert running.end(0, timeout=60) == 1
        lines = running.output.splitlines()
        assert [line for line in lines if "No space left on device" in line] == lines[-1:], running.output
        assert "Traceback" not in running.output
        if size == "40m":
            return  # smaller than a database
        assert not (disk / "data" / "postgresql" / "data").exists()
