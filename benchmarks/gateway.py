"""The gateway beside nginx, a byte splice and uvicorn with aiohttp: processor time of a request, latency, memory.

The gateway is the whole process as the supervisor runs it: 10,000 keys, 500 models with two instances each, with
authentication, routing, admission, choice of an instance, usage, journal, access log and counters. "core" is the same
without what can be left out (``gateway_core.py``), to tell what an AI gateway's bare work costs; the others pass bytes on. One runs at a time, on one core, load and engine on another; they take turns in each round. Of each figure the
least of all rounds counts, since other work on a machine can only add.

``gateway.py [ROUNDS] [SECONDS]``. The exit status is 1 when a goal was missed, 2 when nginx is not there to compare with.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import gateway_core
import gateway_subjects as subjects
from gateway_subjects import HERE, Places, Subject

ROUNDS, SECONDS = 3, 2.0
#: Of the latencies: far from what any of them can do, so that nobody waits for others.
RATE = 1500.0
#: What others ask for while a huge body passes, in a second.
BESIDE = 300.0
#: Seconds for which they ask without one, before.
QUIET = 1.0

#: Title, kind, connections, and the most that it may be of nginx's.
COSTS: tuple[tuple[str, str, int, float | None], ...] = (
    ("1 KB chat, 1 connection", "chat", 1, None),
    ("1 KB chat, 16 connections", "chat", 16, 2.6),
    ("1 KB chat, 64 connections", "chat", 64, 2.6),
    ("34 KB body, 16 connections", "long", 16, 3.0),
    ("SSE chunk, 16 streams", "stream", 16, 1.4),
    ("SSE chunk, 64 streams", "stream", 64, 1.4),
    ("SSE chunk, 256 streams", "stream", 256, 1.4),
)
#: The same of the bare work, where requests of 1 KB come over several connections.
CORE_RATIO = 2.0
ADDED_P50_MS, P99_RATIO, MEGABYTES, HUGE_DELAY_MS = 0.2, 1.5, 45.0, 5.0


class Bench:
    """The runs, and what they gave: by figure and subject, each round's value."""

    def __init__(self, places: Places, direct: Subject, found: list[Subject], seconds: float) -> None:
        self._places = places
        self._direct = direct
        self._subjects = found
        self._seconds = seconds
        self.values: dict[tuple[str, str], list[float]] = defaultdict(list)

    def round(self) -> None:
        """Measure everything once, each figure for all before the next."""
        for title, kind, connections, _ in COSTS:
            for subject in self._subjects:
                self.values[title, subject.name].append(self._cost(subject, kind, connections))
        for subject in (self._direct, *self._subjects):
            said = self._load(subject, "chat", 16, RATE)
            for name in ("p50", "p99"):
                self.values[name, subject.name].append(said[name] * 1e3)
        for subject in (self._direct, *self._subjects):
            self.values["huge", subject.name].append(self._delay(subject) * 1e3)

    def least(self, figure: str, name: str) -> float:
        """Return the least that was measured."""
        return min(self.values[figure, name])

    def _cost(self, subject: Subject, kind: str, connections: int) -> float:
        """Return microseconds for each request, or chunk."""
        before = subject.cpu()
        said = self._load(subject, kind, connections)
        return (subject.cpu() - before) * 1e6 / (said["chunks"] or said["done"])

    def _load(self, subject: Subject, kind: str, connections: int, rate: float = 0.0) -> dict[str, Any]:
        # Streams are long: as many are seen to their end as are cut off.
        seconds = 2 * self._seconds if kind == "stream" else self._seconds
        words = [str(subject.port), kind, str(connections), str(seconds), *([str(rate)] if rate else [])]
        done = subprocess.run(self._command(words), check=True, stdout=subprocess.PIPE, text=True)
        said: dict[str, Any] = json.loads(done.stdout)
        if said["bad"] or not (said["done"] or said["chunks"]):
            raise SystemExit(f"{subject.name}: {said['bad']} of {said['done']} requests failed")
        return said

    def _delay(self, subject: Subject) -> float:
        """Return by how much, as a rule, a huge body makes the slowest of those wait that ask meanwhile."""
        seconds = max(self._seconds, 2.0)
        words = [str(subject.port), "chat", "4", str(seconds + 2 * QUIET), str(BESIDE)]
        with subprocess.Popen(self._command(words), stdout=subprocess.PIPE, text=True) as beside:
            time.sleep(QUIET)
            huge = [str(subject.port), "huge", "1", str(seconds)]
            sent = subprocess.run(self._command(huge), check=True, stdout=subprocess.PIPE, text=True)
            out, _ = beside.communicate()
        times = json.loads(out)["times"]
        spans = json.loads(sent.stdout)["spans"]
        during = [worst for begin, end in spans if (worst := _worst(times, begin, end)) is not None]
        # As long, and as many, while nothing huge passes.
        length = sum(end - begin for begin, end in spans) / len(spans)
        first, until = times[0][0], spans[0][0]
        quiet = []
        while first + length < until:
            if (worst := _worst(times, first, first + length)) is not None:
                quiet.append(worst)
            first += length
        return max(0.0, _middle(during) - _middle(quiet))

    def _command(self, words: list[str]) -> list[str]:
        return self._places.command(
            self._places.load, [sys.executable, str(HERE / "gateway_load.py"), *words]
        )


def _worst(times: list[list[float]], begin: float, end: float) -> float | None:
    return max((took for began, took in times if began < end and began + took > begin), default=None)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


class Report:
    """Prints figures, and remembers whether a goal was missed."""

    def __init__(self, bench: Bench, names: list[str]) -> None:
        self._bench = bench
        self._names = names
        self.missed = False

    def line(self, title: str, figure: str, unit: str, extra: str = "") -> None:
        """Print one figure of all."""
        cells = "".join(f"{self._bench.least(figure, name):>10.2f}" for name in self._names)
        print(f"{title:<28}{cells} {unit:<3}  {extra}", flush=True)

    def goal(self, text: str, value: float, most: float) -> str:
        """Return what is said of a goal."""
        ok = value <= most
        self.missed |= not ok
        return f"{text} {value:.2f}, goal {most:g}: {'ok' if ok else 'MISSED'}"

    def costs(self) -> None:
        """Print what requests and chunks cost."""
        for title, kind, connections, most in COSTS:
            value = self._bench.least(title, "gateway")
            said = []
            for name in self._names[1:]:
                ratio = value / self._bench.least(title, name)
                if name == "nginx" and most is not None:
                    said.append(self.goal("x nginx", ratio, most))
                else:
                    said.append(f"x {name} {ratio:.2f}")
            if kind == "chat" and connections > 1 and "nginx" in self._names:
                ratio = self._bench.least(title, "core") / self._bench.least(title, "nginx")
                said.append(self.goal("core x nginx", ratio, CORE_RATIO))
            self.line(title, title, "us", "; ".join(said))

    def latencies(self) -> None:
        """Print what is added to the latency of a request."""
        least = self._bench.least
        p50 = least("p50", "gateway") - least("p50", "direct")
        self.line("p50 at 16 connections", "p50", "ms", self.goal("added ms", p50, ADDED_P50_MS))
        p99 = f"direct {least('p99', 'direct'):.2f}"
        if "nginx" in self._names:
            p99 = self.goal("x nginx", least("p99", "gateway") / least("p99", "nginx"), P99_RATIO)
        self.line("p99 at 16 connections", "p99", "ms", p99)
        delay = self.goal("ms", least("huge", "gateway"), HUGE_DELAY_MS)
        self.line("delay by a body of 10 MB", "huge", "ms", f"{delay} (direct {least('huge', 'direct'):.2f})")


def main() -> int:
    """Measure and print."""
    rounds = int((*sys.argv, ROUNDS)[1] if len(sys.argv) > 1 else ROUNDS)
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    places = Places()
    absent = subjects.missing()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpustack-bench-")))
        folder.chmod(0o755)
        direct = stack.enter_context(subjects.engine(places))
        found = [stack.enter_context(subjects.ours(places, folder, direct.port))]
        found.append(stack.enter_context(subjects.core(places, folder / "core", direct.port)))
        if "nginx" not in absent:
            found.append(stack.enter_context(subjects.nginx(places, folder / "nginx", direct.port)))
        found.append(stack.enter_context(subjects.program(places, "splice", direct.port)))
        if "asgi" not in absent:
            found.append(stack.enter_context(subjects.program(places, "asgi", direct.port)))
        bench = Bench(places, direct, found, seconds)
        for _ in range(rounds):
            bench.round()
        names = [each.name for each in found]
        for name, why in absent.items():
            print(f"not compared with {name}: {why}")
        print(f"core, on: {gateway_core.ON}")
        print(f"core, off: {gateway_core.OFF}; everything is on in the column gateway")
        print(f"{'':<28}" + "".join(f"{name:>10}" for name in names))
        report = Report(bench, names)
        report.costs()
        report.latencies()
        sizes = [each.megabytes() for each in found]
        for title, at in (("memory, its share (PSS)", 0), ("memory, resident", 1)):
            said = report.goal("MB", sizes[0][at], MEGABYTES) if at == 0 else "with what others map, too"
            print(f"{title:<28}" + "".join(f"{size[at]:>10.1f}" for size in sizes) + f" MB   {said}")
    if report.missed:
        return 1
    return 2 if "nginx" in absent else 0


if __name__ == "__main__":
    sys.exit(main())
