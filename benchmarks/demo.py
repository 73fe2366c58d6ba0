"""Seconds from `gpustack deploy demo` to the first token of an answer, with the engine installed already.

Floor: the engine itself, started by hand on the same file, to the first token.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from common import GPUSTACK, Running, gpustack, new_data_dir, report

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.demo import serving
from support.engine import InstalledEngine, install_engine

RUNS = 5
QUESTION = [{"role": "user", "content": "What is GPUStack?"}]


def _first_token(client: httpx.Client, model: str, path: str) -> None:
    body = {"model": model, "messages": QUESTION, "stream": True}
    with client.stream("POST", path, json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                if choices and choices[0]["delta"].get("content"):
                    return
    raise SystemExit(f"{model} answered without a word")


def _deployed(running: Running, number: int) -> float:
    name = f"demo-{number}"
    command = [GPUSTACK, "--data-dir", str(running.data_dir), "deploy", "demo", "--name", name]
    with running.client() as client:
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        _first_token(client, name, "/v1/chat/completions")
        seconds = time.perf_counter() - began
    subprocess.run(
        [GPUSTACK, "--data-dir", str(running.data_dir), "rm", name],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    return seconds


def _by_hand(engine: InstalledEngine) -> float:
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(engine, "demo", Path(folder)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        _first_token(client, "demo", "/v1/chat/completions")
        return time.perf_counter() - began


def main() -> None:
    """Measure both in turn."""
    engine = install_engine()
    with new_data_dir() as data_dir, gpustack(data_dir, "--bin-dir", str(engine.bin_dir)) as running:
        taken = [(_deployed(running, number), _by_hand(engine)) for number in range(RUNS)]
    deployed, floors = zip(*taken, strict=True)
    report(
        "deploy demo to first token",
        statistics.median(deployed),
        "s",
        floor=statistics.median(floors),
        floor_name="engine by hand",
        goal=3,
    )


if __name__ == "__main__":
    main()
