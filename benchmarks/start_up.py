"""Seconds from `gpustack start` to ready: with an empty data directory, and again.

Floor: the same interpreter importing the server's frameworks, which no start can do without.
"""

from __future__ import annotations

import statistics
import sys

from common import gpustack, new_data_dir, report, seconds

FLOOR = [sys.executable, "-c", "import litestar, piccolo.engine.postgres, uvicorn, asyncpg"]


def main() -> None:
    """Measure three first starts, and two more of each."""
    floor = seconds(FLOOR, runs=3)
    first, again = [], []
    for _ in range(3):
        with new_data_dir() as data_dir:
            with gpustack(data_dir) as running:
                first.append(running.seconds_to_ready)
            for _ in range(2):
                with gpustack(data_dir) as running:
                    again.append(running.seconds_to_ready)
    name = "importing the frameworks"
    report("first start to ready", statistics.median(first), "s", floor=floor, floor_name=name, goal=6)
    report("start again to ready", statistics.median(again), "s", floor=floor, floor_name=name, goal=2.5)


if __name__ == "__main__":
    main()
