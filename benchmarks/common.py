"""What the benchmark programs share: a running GPUStack, its processes, and how figures are printed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

GPUSTACK = str(Path(sys.executable).with_name("gpustack"))


@dataclass(frozen=True)
class Running:
    """A GPUStack that is ready."""

    url: str
    data_dir: Path
    process: subprocess.Popen[str]
    seconds_to_ready: float

    def client(self) -> httpx.Client:
        """Return a client that acts as the administrator."""
        token = (self.data_dir / "run" / "cli_token").read_text()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Return the supervisor and its children's trees by name."""
        state = json.loads((self.data_dir / "run" / "supervisor.json").read_text())
        found = {"supervisor": [psutil.Process(state["pid"])]}
        for name, child in state["children"].items():
            process = psutil.Process(child["pid"])
            found[name] = [process, *process.children(recursive=True)]
        return found


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def gpustack(data_dir: Path, *flags: str) -> Iterator[Running]:
    """Run GPUStack over ``data_dir`` until the block ends."""
    port = free_port()
    command = [
        GPUSTACK,
        "start",
        "--port",
        str(port),
        "--worker-port",
        "0",
        "--api-port",
        "0",
        "--disable-update-check",
        "--data-dir",
        str(data_dir),
        *flags,
    ]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/")
    try:
        seconds = _until_ready(process, began)
        yield Running(f"http://127.0.0.1:{port}", data_dir, process, seconds)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def _until_ready(process: subprocess.Popen[str], began: float) -> float:
    assert process.stderr is not None
    seen = ""
    while time.perf_counter() - began < 60:
        if select.select([process.stderr], [], [], 1)[0]:
            line = process.stderr.readline()
            seen += line
            if "is ready" in line:
                return time.perf_counter() - began
            if not line:
                break
    raise SystemExit(f"GPUStack did not become ready:\n{seen}")


@contextlib.contextmanager
def new_data_dir() -> Iterator[Path]:
    """Return an empty data directory that every user may enter, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="gpustack-bench-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "data"


def seconds(command: list[str], *, runs: int = 7) -> float:
    """Return the median duration of a command's whole process."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def report(title: str, value: float, unit: str, *, floor: float, floor_name: str, goal: float) -> None:
    """Print one figure with its goal, and its ratio to a floor measured in the same run."""
    verdict = "ok" if value <= goal else "MISSED"
    ratio = f"{value / floor:.2f} x {floor_name} ({floor:.3g} {unit})" if floor else ""
    print(f"{title:<44} {value:>9.3g} {unit:<5} goal {goal:g} {verdict:<7} {ratio}", flush=True)


def as_root() -> bool:
    """Tell whether this runs as root."""
    return os.geteuid() == 0
