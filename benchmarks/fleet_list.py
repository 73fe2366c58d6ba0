"""Milliseconds to list a fleet of 500 workers with 8 GPUs each, whole, and its 4,000 GPUs.

Floor: the same rows read from the same database and their JSON put together, with nothing understood on the way.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
from common import gpustack, new_data_dir, report

WORKERS, GPUS, RUNS = 500, 8, 15


def _gpu(number: int, seed: int) -> dict[str, object]:
    total = 85899345920
    return {
        "uuid": f"GPU-{number:08x}-5b1c-4e0f-9a53-0f6f8f6f0a01",
        "index": number % GPUS,
        "vendor": "nvidia",
        "name": "NVIDIA A100-SXM4-80GB",
        "type": "cuda",
        "driver_version": "550.54.15",
        "runtime_version": "12.4",
        "compute_capability": "8.0",
        "memory": {
            "total": total,
            "used": total // 3 + seed,
            "utilization_rate": 33.3,
            "allocated": total // 2,
        },
        "core_utilization_rate": 71.5 + seed % 20,
        "temperature": 61.0,
    }


def registration(number: int, seed: int = 0) -> dict[str, Any]:
    """Return what the worker ``number`` registers with; another ``seed`` has other figures measured."""
    disks = [
        {"name": f"/dev/nvme{n}n1", "mount_point": f"/data{n}", "total": 1 << 40, "used": 1 << 38}
        for n in range(3)
    ]
    status = {
        "cpu": {"total": 128, "utilization_rate": 12.5 + seed % 20},
        "memory": {"total": 1 << 40, "used": 1 << 37, "utilization_rate": 12.5},
        "swap": {"total": 0, "used": 0, "utilization_rate": 0.0},
        "filesystem": disks,
        "os": {"name": "Ubuntu", "version": "22.04"},
        "kernel": {"name": "Linux", "release": "5.15.0-113-generic", "architecture": "x86_64"},
        "uptime": {"uptime": 864000.0},
        "gpu_devices": [_gpu(number * GPUS + index, seed) for index in range(GPUS)],
    }
    return {
        "name": f"node-{number:03}",
        "hostname": f"node-{number:03}.example",
        "ip": f"10.0.{number // 250}.{number % 250 + 1}",
        "port": 10150,
        "door_token": f"{number:032}",
        "worker_uuid": f"00000000-0000-4000-8000-{number:012}",
        "version": "0.1.0",
        "labels": {"zone": f"z{number % 4}"},
        "status": status,
    }


def _registered(client: httpx.Client) -> None:
    for number in range(WORKERS):
        client.post("/v2/workers", json=registration(number)).raise_for_status()


def _median(client: httpx.Client, path: str, items: int) -> float:
    """Return the milliseconds of one request, connection kept."""
    taken = []
    for _ in range(RUNS + 3):
        began = time.perf_counter()
        content = client.get(path).content
        taken.append((time.perf_counter() - began) * 1000)
        assert content.count(b'"compute_capability"') == items, f"{path}: {content[:200]!r}"
    return statistics.median(taken[3:])


async def _floor(data_dir: Path) -> float:
    folder = data_dir / "postgresql"
    password, port = ((folder / name).read_text().strip() for name in ("password", "port"))
    url = f"postgresql://gpustack:{quote(password)}@127.0.0.1:{port}/gpustack?sslmode=disable"
    connection = await asyncpg.connect(url)

    async def read() -> None:
        rows = await connection.fetch("SELECT * FROM workers ORDER BY id")
        b"[" + b",".join(row["status"].encode() for row in rows) + b"]"

    try:
        return await _median_of(read)
    finally:
        await connection.close()


async def _median_of(work: Callable[[], Awaitable[None]]) -> float:
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        await work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def main() -> None:
    """Register the fleet with a real server over a real database, then list it."""
    with (
        new_data_dir() as data_dir,
        gpustack(data_dir, "--disable-worker") as running,
        running.client() as client,
    ):
        _registered(client)
        floor = asyncio.run(_floor(data_dir))
        for title, path in (("workers", "/v2/workers?page=-1"), ("GPUs", "/v2/gpu-devices?page=-1")):
            taken = _median(client, path, WORKERS * GPUS)
            what = f"list {title}: {WORKERS} workers x {GPUS} GPUs"
            report(what, taken, "ms", floor=floor, floor_name="reading the rows", goal=60)


if __name__ == "__main__":
    main()
