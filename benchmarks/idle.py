"""Memory and processor of an idle GPUStack: PSS of all Python processes, and percent of one core.

Floor for the memory: one interpreter with the server's frameworks imported.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
from common import gpustack, new_data_dir, report

SETTLE, WATCH = 5.0, 30.0
_FLOOR = "import litestar, piccolo.engine.postgres, uvicorn, asyncpg, sys; print('up', flush=True); sys.stdin.read()"


def _pss(processes: list[psutil.Process]) -> float:
    return sum(process.memory_full_info().pss for process in processes) / 2**20


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _floor() -> float:
    with subprocess.Popen(
        [sys.executable, "-c", _FLOOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size = _pss([psutil.Process(process.pid)])
        process.communicate()
    return size


def main() -> None:
    """Measure after everything has settled."""
    floor = _floor()
    with new_data_dir() as data_dir, gpustack(data_dir) as running:
        time.sleep(SETTLE)
        found = running.processes()
        python = [each for name, tree in found.items() if name != "postgres" for each in tree]
        everything = [each for tree in found.values() for each in tree]
        before = _cpu(everything)
        time.sleep(WATCH)
        percent = (_cpu(everything) - before) / WATCH * 100
        for name, tree in found.items():
            print(f"  {name:<42} {_pss(tree):>9.1f} MiB")
        size = _pss(python)
    report(
        "all Python processes, idle",
        size,
        "MiB",
        floor=floor,
        floor_name="one process of frameworks",
        goal=200,
    )
    report("processor, idle (database included)", percent, "%", floor=0, floor_name="", goal=1)


if __name__ == "__main__":
    main()
