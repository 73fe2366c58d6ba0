"""A whole GPUStack whose processes can be killed, counted and compared: what the tests of survival share."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from support.load import Kill
from support.running import Running, eventually, free_ports, processes_of, spawn

#: Seconds within which everything has to be whole again, on a machine that does much else.
WHOLE_WITHIN = 60.0
_ENGINE_RECORD = "GPUSTACK_INSTANCE_RECORD"
#: What systemd waits by default before it starts a service again.
_RESTART_AFTER = 0.1


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine: the leader of its session."""

    instance: int
    pid: int
    started: float


@dataclass(frozen=True)
class Inventory:
    """What a GPUStack takes from its machine, by role; comes out the same before and after any accident."""

    processes: Counter[str]
    descriptors: dict[str, Counter[str]]
    ports: Counter[str]
    locks: Counter[str]

    def differences(self, other: Inventory) -> list[str]:
        """Return what differs, in words."""
        found = [
            f"{name}: {mine} then {theirs}"
            for name in ("processes", "ports", "locks")
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]
        for role in self.descriptors.keys() | other.descriptors.keys():
            before, after = self.descriptors.get(role, Counter()), other.descriptors.get(role, Counter())
            if before != after:
                found.append(f"descriptors of {role}: -{dict(before - after)} +{dict(after - before)}")
        return found


class House:
    """One ``gpustack start`` on fixed ports, started again when its supervisor dies, as systemd would."""

    def __init__(self, data_dir: Path, home: Path, flags: Sequence[str] = ()) -> None:
        self.data_dir, self.home, self.flags = data_dir, home, list(flags)
        self.port = free_ports(1)[0]
        #: How often it had to be started until it ran, each time the supervisor was gone.
        self.attempts: list[int] = []
        self.running = self._spawn()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def _spawn(self) -> Running:
        running = spawn(self.data_dir, self.home, self.flags, port=self.port)
        threading.Thread(target=_drain, args=(running,), daemon=True).start()
        return running

    def start(self) -> None:
        """Start it (again) after the supervisor's death, as often as that takes."""
        self.attempts.append(1)
        self.running = self._spawn()

    def wait_up(self) -> None:
        """Return when the supervisor says that all is ready; one that gave up is started again."""

        def up() -> bool:
            if self.running.process.poll() is not None:
                time.sleep(_RESTART_AFTER)
                self.attempts = [*self.attempts[:-1], (self.attempts or [0])[-1] + 1]
                self.running = self._spawn()
            state = self.state()
            ready = all(child["state"] == "ready" for child in state.get("children", {}).values())
            return state.get("pid") == self.running.process.pid and bool(state.get("ready")) and ready

        self._eventually(up, "everything is ready")

    def state(self) -> dict[str, Any]:
        """Return what the supervisor says of itself; nothing when there is none."""
        with contextlib.suppress(OSError, ValueError):
            return self.running.state()
        return {}

    def pid(self, role: str) -> int:
        """Return the number of the process that has the role now; of the engines, the one that runs longest.

        An instance whose engine dies again and again is restarted after longer and longer pauses.
        """
        if role == "engine":
            return min(self.engines(), key=lambda engine: engine.started).pid
        state = self.state()
        return int(state["pid"] if role == "supervisor" else state["children"][role]["pid"])

    def engines(self) -> list[Engine]:
        """Return every engine that runs, whether anybody knows it or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                record = Path(process.environ().get(_ENGINE_RECORD, ""))
                leads = os.getsid(process.pid) == process.pid and process.status() != psutil.STATUS_ZOMBIE
                if leads and record.is_relative_to(self.data_dir):
                    started = process.create_time()
                    found.append(Engine(instance=int(record.stem), pid=process.pid, started=started))
        return sorted(found, key=lambda engine: (engine.instance, engine.started))

    def kill(self, role: str) -> Kill:
        """``kill -9`` the process of that role; a supervisor is started again at once."""
        return self.kill_all([role])[0]

    def kill_all(self, roles: Sequence[str]) -> list[Kill]:
        """Kill several at the same moment."""
        pids = [self.pid(role) for role in roles]
        watched = [os.pidfd_open(pid) for pid in pids]
        began = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        kills = [
            Kill(what=role, began=began, gone=_gone(fd)) for role, fd in zip(roles, watched, strict=True)
        ]
        if "supervisor" in roles:
            self.running.process.wait()
            self.start()
        return kills

    def cut_power(self) -> None:
        """Kill everything that belongs to it, engines and the database's own processes included."""
        for _ in range(3):
            for process in processes_of(self.data_dir):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self.running.process.wait()
        eventually(lambda: not processes_of(self.data_dir), "everything is dead")

    def answering_after(self, since: float) -> float:
        """Return how long after ``since`` the server was ready, as a new client sees it."""

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
            return False

        self._eventually(ready, "the server is ready")
        return time.monotonic() - since

    def wait_whole(self, replicas: int) -> None:
        """Return when all children are ready, ``replicas`` instances run and there is one engine for each."""
        self.wait_up()

        def whole() -> bool:
            try:
                instances = self.instances()
            except httpx.HTTPStatusError:  # the server is on its way
                return False
            running = {(each["id"], each["pid"]) for each in instances if each["state"] == "running"}
            if not len(running) == len(instances) == replicas:
                return False
            engines = [(each.instance, each.pid) for each in self.engines()]
            return len(engines) == replicas and set(engines) == running

        self._eventually(whole, f"{replicas} instances run, with an engine each")

    def _eventually(self, holds: Callable[[], object], what: str) -> None:
        """Wait as :func:`eventually` does, with fewer looks: they cost what is looked at its time."""
        deadline = time.monotonic() + WHOLE_WITHIN
        while not holds():
            assert time.monotonic() < deadline, (
                f"not within {WHOLE_WITHIN:g} s: {what}\n{self.running.output}\n{self.state()}\n{self.engines()}"
            )
            time.sleep(0.1)

    def instances(self) -> list[dict[str, Any]]:
        """Return all instances as the API has them."""
        with self.running.admin() as admin:
            answer = admin.get("/v2/model-instances?page=-1").raise_for_status()
            found: list[dict[str, Any]] = answer.json()["items"]
            return found

    def instance_events(self) -> list[dict[str, Any]]:
        """Return all that is known of what happened to instances, oldest first."""
        with self.running.admin() as admin:
            found: list[dict[str, Any]] = []
            for page in itertools.count(1):
                query = {"page": page, "perPage": 1000, "sort_by": "id"}
                answer = admin.get("/v2/model-instance-events", params=query).json()
                found += answer["items"]
                if page >= answer["pagination"]["totalPage"]:
                    return found
            raise AssertionError("not reached")

    def inventory(self) -> Inventory:
        """Count processes, descriptors, listening ports and locks. Connections come and go and are left out."""
        processes, descriptors, ports = Counter[str](), dict[str, Counter[str]](), Counter[str]()
        roles: dict[int, str] = {}
        for process in processes_of(self.data_dir):
            with contextlib.suppress(psutil.Error, OSError):
                if (role := _role(process)) is None:
                    continue
                roles[process.pid] = role
                processes[role] += 1
                descriptors.setdefault(role, Counter()).update(_descriptors(process))
                listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                ports[role] += len({each.laddr for each in listening})
        return Inventory(processes, descriptors, ports, _locks(roles))

    def stop(self) -> None:
        """``gpustack stop``; nothing at all may be left."""
        self.running.cli("stop")
        self.running.process.wait(20)
        left = [f"{each.pid} {' '.join(each.cmdline())}" for each in processes_of(self.data_dir)]
        assert left == []

    def end(self) -> None:
        """Kill whatever is left, at the end of a test."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.running.process.send_signal(signal.SIGTERM)
            self.running.process.wait(20)
        for process in processes_of(self.data_dir):
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def a_house(data_dir: Path, home: Path, flags: Sequence[str] = ()) -> Iterator[House]:
    """Run a GPUStack until the block ends."""
    house = House(data_dir, home, flags)
    try:
        house.wait_up()
        yield house
    finally:
        house.end()


def served_by_two(house: House, model: Path, name: str = "tiny") -> str:
    """Deploy two replicas with room for many streams each, and return an administrator's API key.

    The engines yield to everybody else: 32 endless answers would take all processors from what is tested.
    """
    slots = ("--parallel=20", "--ctx-size=40960", "--threads=1")
    parameters = [word for slot in slots for word in ("--backend-parameter", slot)]
    house.running.cli("deploy", str(model), "--name", name, "--replicas", "2", "--timeout", "90", *parameters)
    be_humble(house)
    return str(json.loads(house.running.cli("keys", "create", "load", "--json").stdout)["value"])


def be_humble(house: House) -> None:
    """Let engines, new ones too, take the processor only when nobody else wants it."""
    for engine in house.engines():
        with contextlib.suppress(psutil.Error):
            psutil.Process(engine.pid).nice(19)


def key_names(house: House) -> list[str]:
    """Return the names of all API keys."""
    with house.running.admin() as admin:
        items = admin.get("/v2/api-keys?page=-1").json()["items"]
    return [each["name"] for each in items]


def _drain(running: Running) -> None:
    assert running.process.stdout is not None
    with running.process.stdout as output:
        for line in output:
            running.output += line.decode(errors="replace")


def _gone(pidfd: int) -> float:
    """Wait until a process is dead with all its threads, and return the moment.

    Its number shows a zombie as soon as the first thread is one, while others still hold its sockets.
    """
    with contextlib.closing(os.fdopen(pidfd)):
        assert select.select([pidfd], [], [], 10)[0], "it does not die"
    return time.monotonic()


_WRITTEN = re.compile(r"/gateway/usage/\w+\.\d+\.log|/log/access\.log")
_PYTHON = re.compile(r"gpustack\.app\.(?:child (\w+)|(supervisor))")


def _role(process: psutil.Process) -> str | None:
    """Name what a process is; None for the database's own processes, which come and go with connections."""
    line = " ".join(process.cmdline())
    if found := _PYTHON.search(line):
        return found[1] or found[2]
    if line.startswith("postgres:"):
        return None
    if "/postgres -D" in line:
        return "postgres"
    return "engine" if _ENGINE_RECORD in process.environ() else f"stranger: {line}"


def _descriptors(process: psutil.Process) -> Counter[str]:
    """Count what is open by kind or path, connections left out."""
    found = Counter[str]()
    for each in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(each.readlink())
            # What is written to is opened with the first record.
            if not target.startswith("socket:") and not _WRITTEN.search(target):
                # Each gateway process has files of its own, under names that nobody has again.
                shared = re.sub(
                    r"(/gateway/(?:metrics/|usage/|outstanding|limits)|/dev/shm/gpustack).*", r"\1", target
                )
                found[re.sub(r":?\[\d+\]|\d{4,}", "", shared)] += 1
    return found


def _locks(roles: dict[int, str]) -> Counter[str]:
    found = Counter[str]()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.replace("->", "").split()
        if (role := roles.get(int(words[4]))) is not None:
            found[role] += 1
    return found
