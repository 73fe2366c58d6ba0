"""An hour of churn (``SOAK_MINUTES``): memory and descriptors stay flat, and nothing is left at the end.

Models are deployed, asked, scaled and removed, workers and engines are killed now and then, under light traffic. Exit
status 1 when a process has grown between the first and the last third of the time (after a warm-up), or when
anything is left running.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.engine import install_engine
from support.house import House, a_house
from support.load import Traffic, load
from support.running import a_port_range, eventually, processes_of
from support.tiny_models import make_tiny_gguf

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
#: Part of the time that is not looked at: caches fill and the allocator finds its size.
WARM_UP = 0.2
EVERY = 5.0
#: What counts as growth, whichever is more: MiB, and part of what it was.
GROWTH, SHARE, DESCRIPTORS = 6.0, 0.1, 6
ROLES = ("supervisor", "server", "gateway", "worker", "door", "postgres")


@dataclass(frozen=True)
class Sample:
    """One look at one process with what belongs to it."""

    at: float
    pid: int
    mib: float
    descriptors: int


class Watch:
    """Looks at all processes every few seconds."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._began = time.monotonic()
        self._next = 0.0
        self.samples: dict[str, list[Sample]] = {role: [] for role in ROLES}

    def look(self) -> None:
        """Take a sample of each role, if it is time again."""
        now = time.monotonic() - self._began
        if now < self._next:
            return
        self._next = now + EVERY
        for role in ROLES:
            with contextlib.suppress(psutil.Error, KeyError, TypeError):
                self.samples[role].append(_sample(now, psutil.Process(self._house.pid(role)), role))

    def verdicts(self) -> Iterator[tuple[str, bool]]:
        """Yield a line for each role, and whether it has stayed flat."""
        for role, samples in self.samples.items():
            late = [each for each in samples if each.at >= WARM_UP * MINUTES * 60]
            third = max(1, len(late) // 3)
            first, last = late[:third], late[-third:]
            if not first or not last:
                yield f"{role:<11} no samples", False
                continue
            was, now = (statistics.median(each.mib for each in part) for part in (first, last))
            had, has = (statistics.median(each.descriptors for each in part) for part in (first, last))
            flat = now - was <= max(GROWTH, SHARE * was) and has - had <= DESCRIPTORS
            lives = len({each.pid for each in samples})
            figures = f"{was:>8.1f} {now:>8.1f} {_slope(late):>+9.2f} {had:>9.0f} {has:>6.0f} {lives:>6}"
            yield f"{role:<11} {figures}  {'flat' if flat else 'GROWS'}", flat


def _sample(now: float, process: psutil.Process, role: str) -> Sample:
    """Return memory and descriptors; of the database, of all its processes.

    Memory is what processes have written themselves, with pages that several share counted once. Pages of programs and
    libraries, which the system takes and gives as it likes, and the database's shared buffers, which are of a fixed size
    and fill only little by little, are left out.
    """
    members = [process, *(process.children() if role == "postgres" else [])]
    size = 0.0
    for each in members:
        with contextlib.suppress(OSError):  # one of the database's has ended
            size += _written(each.pid)
    return Sample(now, process.pid, size, process.num_fds())


def _written(pid: int) -> float:
    """Return the MiB of a process that lie in no file."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss_Anon:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None, rollup
    return int(found[1]) / 1024


def _slope(samples: list[Sample]) -> float:
    """Return the growth in MiB per hour, as a straight line through all samples says."""
    if len(samples) < 3:
        return 0.0
    slope, _ = statistics.linear_regression([each.at for each in samples], [each.mib for each in samples])
    return slope * 3600


def _churn(house: House, model: Path, number: int) -> None:
    """Give one model a whole life: deployed, asked, scaled up and down, removed."""
    name = f"churn-{number}"
    house.running.cli("deploy", str(model), "--name", name, "--timeout", "90")
    house.running.cli("chat", name, "--once", "Hello", "--max-tokens", "8")
    with house.running.admin() as admin:
        (found,) = admin.get("/v2/models", params={"search": name}).json()["items"]
        for replicas in (2, 1):
            spec = {"name": name, "local_path": found["local_path"], "replicas": replicas}
            admin.put(f"/v2/models/{found['id']}", json=spec).raise_for_status()
            eventually(
                lambda wanted=replicas: _ready(admin, found["id"]) == wanted,
                f"{name} x {replicas}",
                seconds=60,
            )
    house.running.cli("rm", name)


def _ready(admin: httpx.Client, model_id: int) -> int:
    return int(admin.get(f"/v2/models/{model_id}").json()["ready_replicas"])


def _soak(house: House, model: Path, watch: Watch, traffic: Traffic) -> int:
    """Churn until the time is over and return how many lives that made."""
    deadline = time.monotonic() + MINUTES * 60
    for number in itertools.count():
        if time.monotonic() >= deadline:
            return number
        _churn(house, model, number)
        watch.look()
        if number % 10 == 5:
            house.kill("worker")
            house.wait_up()
        if number % 25 == 20:
            house.kill("engine")
        if number % 10 == 0:
            print(
                f"  {number} models, {traffic.answered} answers, {len(house.engines())} engines", flush=True
            )
    raise AssertionError("not reached")


def main() -> int:
    """Run it and print the table."""
    engine, model = install_engine(), make_tiny_gguf()
    with tempfile.TemporaryDirectory(prefix="gpustack-soak-") as folder:
        Path(folder).chmod(0o755)
        data_dir = Path(folder) / "data"
        flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(12)]
        with a_house(data_dir, Path(folder) / "home", flags) as house:
            house.running.cli("deploy", str(model), "--name", "tiny", "--replicas", "2", "--timeout", "90")
            key = str(json.loads(house.running.cli("keys", "create", "soak", "--json").stdout)["value"])
            watch = Watch(house)
            with load(house.url, key, "tiny", rate=20, streams=4, tokens=100) as traffic:
                lives = _soak(house, model, watch, traffic)
            house.running.cli("stop")
            left = processes_of(data_dir)
    return _told(watch, traffic, lives, left)


def _told(watch: Watch, traffic: Traffic, lives: int, left: list[psutil.Process]) -> int:
    print(f"{lives} models in {MINUTES:g} minutes, {sum(traffic.report.answered.values())} answers")
    print("            MiB before    after  MiB/hour  descriptors before/after  lives")
    verdicts = list(watch.verdicts())
    for line, _ in verdicts:
        print(line)
    print(f"left running: {[' '.join(each.cmdline()) for each in left]}")
    return 0 if all(flat for _, flat in verdicts) and not left else 1


if __name__ == "__main__":
    sys.exit(main())
