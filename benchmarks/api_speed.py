"""The management API: processor time to list 100 of 1,000 models, and the time to create one.

Floors: `GET /healthz` through the same server, which is what a request costs before any work of ours.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import httpx
import psutil
from common import Running, gpustack, new_data_dir, report


def _cpu_per_request(running: Running, client: httpx.Client, path: str, runs: int = 200) -> float:
    server = running.processes()["server"][0]
    for _ in range(20):
        client.get(path).raise_for_status()
    before = sum(psutil.Process(server.pid).cpu_times()[:2])
    for _ in range(runs):
        client.get(path).raise_for_status()
    return (sum(psutil.Process(server.pid).cpu_times()[:2]) - before) / runs * 1000


def _create(client: httpx.Client, model: Path, count: int) -> list[float]:
    taken = []
    for number in range(count):
        body = {"name": f"model-{number}", "source": "local_path", "local_path": str(model), "replicas": 0}
        began = time.perf_counter()
        client.post("/v2/models", json=body).raise_for_status()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def main() -> None:
    """Fill a server with 1,000 models, then ask for a page of 100."""
    with (
        new_data_dir() as data_dir,
        gpustack(data_dir, "--disable-worker") as running,
        running.client() as client,
    ):
        probes = []
        for _ in range(200):
            began = time.perf_counter()
            client.get("/healthz").raise_for_status()
            probes.append((time.perf_counter() - began) * 1000)
        created = _create(client, Path("/nowhere/model.gguf"), 1000)
        floor = _cpu_per_request(running, client, "/healthz")
        listing = _cpu_per_request(running, client, "/v2/models?page=3&perPage=100")
    report("list 100 of 1,000 models, processor", listing, "ms", floor=floor, floor_name="a probe", goal=3)
    report(
        "create a model, p50",
        statistics.median(created),
        "ms",
        floor=statistics.median(probes),
        floor_name="a probe",
        goal=10,
    )


if __name__ == "__main__":
    main()
