"""Seconds until the server answers again after `kill -9`, and until a new worker has adopted the old one's engine.

Adopted means that the new worker hands out the engine's log, and that the engine is the same process as before.
Floor: the same interpreter importing the server's frameworks, which a new server cannot do without.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from common import GPUSTACK, Running, gpustack, new_data_dir, report, seconds

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.engine import InstalledEngine, install_engine
from support.tiny_models import make_tiny_gguf

FLOOR = [sys.executable, "-c", "import litestar, piccolo.engine.postgres, uvicorn, asyncpg"]
RUNS = 5
_LOOK, _LIMIT = 0.01, 30.0


def _deploy(running: Running, model: Path) -> dict[str, Any]:
    command = [GPUSTACK, "--data-dir", str(running.data_dir), "deploy", str(model), "--name", "tiny"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _instance(running)


def _instance(running: Running) -> dict[str, Any]:
    with running.client() as client:
        (found,) = client.get("/v2/model-instances").json()["items"]
    return dict(found)


def _back_after(running: Running, role: str, path: str) -> float:
    """Kill a child and return the seconds until ``path`` answers as it did before."""
    with running.client() as client:
        client.get(path).raise_for_status()
        began = time.perf_counter()
        os.kill(running.processes()[role][0].pid, signal.SIGKILL)
        while not _good(running, path):
            if time.perf_counter() - began > _LIMIT:
                raise SystemExit(f"{path} does not answer {_LIMIT:.0f} s after the {role}'s death")
            time.sleep(_LOOK)
        return time.perf_counter() - began


def _good(running: Running, path: str) -> bool:
    """Ask on a new connection, as somebody would who comes just now."""
    try:
        with running.client() as client:
            return client.get(path).status_code == 200
    except httpx.HTTPError:
        return False


def _one_run(engine: InstalledEngine, model: Path) -> tuple[float, float]:
    with new_data_dir() as data_dir, gpustack(data_dir, "--bin-dir", str(engine.bin_dir)) as running:
        instance = _deploy(running, model)
        server = _back_after(running, "server", "/readyz")
        worker = _back_after(running, "worker", f"/v2/model-instances/{instance['id']}/logs?tail=1")
        if _instance(running)["pid"] != instance["pid"]:
            raise SystemExit("the engine was not adopted but started again")
    return server, worker


def main() -> None:
    """Kill both in several fresh installations: a second death in a row is followed by a longer pause."""
    engine, model = install_engine(), make_tiny_gguf()
    taken = [_one_run(engine, model) for _ in range(RUNS)]
    floor = seconds(FLOOR, runs=3)
    name = "importing the frameworks"
    servers, workers = zip(*taken, strict=True)
    report(
        "server ready after kill -9", statistics.median(servers), "s", floor=floor, floor_name=name, goal=2
    )
    report(
        "engine adopted after kill -9 of its worker",
        statistics.median(workers),
        "s",
        floor=floor,
        floor_name=name,
        goal=2,
    )


if __name__ == "__main__":
    main()
