"""What is in flight through a door when it dies, or is exchanged.

The engine is held still meanwhile, so that a stream is open for as long as the test needs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from support.engine import InstalledEngine
from support.running import (
    Running,
    a_port_range,
    eventually,
    free_ports,
    gpustack,
    processes_of,
    spawn,
    wait_ready,
)

pytestmark = pytest.mark.xdist_group("e2e-taking-over")


@dataclass
class Machines:
    """A server, and another machine: an address of this one that the server does not take for its own."""

    server: Running
    worker: Running

    def door(self) -> int | None:
        pid: int | None = self.worker.state()["children"]["door"]["pid"]
        return pid

    def engine(self) -> psutil.Process:
        (instance,) = json.loads(self.server.cli("ps", "--json").stdout)
        return psutil.Process(instance["pid"])

    def ask(self) -> int:
        """Return the status of one short request."""
        with self.server.admin() as client:
            body = {"model": "tiny", "prompt": "Hello", "max_tokens": 2}
            return client.post("/v1/completions", json=body, timeout=60).status_code


@pytest.fixture(scope="module")
def machines(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> Iterator[Machines]:
    here, there = place / "streams here", place / "streams there"
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(here, place / "streams home", ["--disable-worker"]) as server:
        flags += [
            "--server-url", server.url, "--token-file", str(here / "token"), "--worker-name", "other",
            "--advertise-address", "127.0.0.9", "--worker-port", str(free_ports(1)[0]),
        ]  # fmt: skip
        worker = wait_ready(spawn(there, place / "streams there home", flags))
        try:
            # Room for an answer that is not over before the engine is held.
            room = ["--backend-parameter", "--ctx-size=4096", "--backend-parameter", "--threads=1"]
            server.cli("deploy", str(tiny_gguf), "--name", "tiny", *room)
            yield Machines(server, worker)
        finally:
            worker.cli("stop", check=False)
            worker.end()
            for process in processes_of(there):
                process.kill()


class Stream:
    """A stream in the background. Its engine stands still from the first piece on, until it is told to go on."""

    def __init__(self, machines: Machines) -> None:
        self.engine = machines.engine()
        self.whole = False
        self._held = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(machines.server,))
        self._thread.start()
        assert self._held.wait(60), "it does not begin"

    def _read(self, server: Running) -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        try:
            with (
                server.admin() as client,
                client.stream("POST", "/v1/completions", json=body, timeout=120) as answer,
            ):
                for line in answer.iter_lines():
                    if not self._held.is_set():
                        self.engine.suspend()
                        self._held.set()
                    self.whole = self.whole or line == "data: [DONE]"
        except httpx.HTTPError:
            self.whole = False

    def go_on(self) -> None:
        self.engine.resume()

    @property
    def open(self) -> bool:
        return self._thread.is_alive()

    def ended_whole(self) -> bool:
        """Wait for its end; tell whether it was complete."""
        self._thread.join(60)
        assert not self.open
        return self.whole


def test_a_killed_door_costs_what_was_in_flight_on_it_and_nothing_else(machines: Machines) -> None:
    door = machines.door()
    assert door is not None
    stream, process = Stream(machines), psutil.Process(door)
    try:
        assert stream.open
        process.kill()
        eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it dies")
    finally:
        stream.go_on()
    assert machines.ask() == 200
    assert not stream.ended_whole()
    eventually(lambda: machines.door() not in (door, None), "another door", seconds=30)
    assert machines.worker.state()["children"]["door"]["restarts"] >= 1


def test_a_stream_outlives_a_restart_of_its_machine_and_the_new_door_is_watched(machines: Machines) -> None:
    eventually(lambda: machines.door() is not None, "a door", seconds=30)
    stream, door = Stream(machines), machines.door()
    assert door is not None
    try:
        machines.worker.cli("restart")
        assert machines.door() not in (door, None)
        assert stream.open
        assert psutil.Process(door).is_running()
    finally:
        stream.go_on()
    assert stream.ended_whole()
    assert machines.engine() == stream.engine
    eventually(lambda: not psutil.pid_exists(door), "the old door ends", seconds=60)

    new = machines.door()
    assert new is not None
    psutil.Process(new).kill()
    eventually(lambda: machines.door() not in (new, None), "another door", seconds=30)
    assert machines.ask() == 200
