"""Workers on machines of their own, which join a server as a person would have them join."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from support.engine import InstalledEngine
from support.hosts import Host, Network
from support.running import Running, a_port_range, processes_of, spawn, wait_ready


@dataclass
class Machine:
    """A worker on its own host, with ``env`` besides; the token is needed once."""

    host: Host
    place: Path
    flags: list[str]
    env: dict[str, str] = field(default_factory=dict)
    running: Running | None = None

    @property
    def data_dir(self) -> Path:
        return self.place / f"data {self.host.name}"

    def switch_on(self, env: dict[str, str] | None = None) -> Running:
        """Start the worker without waiting for anything."""
        home = self.place / f"home {self.host.name}"
        full = {**self.env, **(env or {})}
        self.running = spawn(self.data_dir, home, self.flags, env=full, prefix=self.host.prefix)
        return self.running

    def start(self) -> None:
        """Start the worker and wait until it has joined."""
        wait_ready(self.switch_on())

    def lose_power(self) -> None:
        """End everything there at once."""
        self.host.kill()
        assert self.running is not None
        self.running.process.communicate(timeout=10)

    def stop(self) -> None:
        """End whatever is left."""
        self.host.heal()
        if self.running is not None and self.running.process.poll() is None:
            with contextlib.suppress(Exception):
                self.running.end()
        for process in processes_of(self.data_dir):
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def joined(
    server: Running,
    net: Network,
    place: Path,
    engine: InstalledEngine | None = None,
    *,
    ports: int = 4,
    flags: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> Iterator[dict[str, Machine]]:
    """Run what ``workers join-command`` prints on every host; gives the machines by address once all have joined.

    ``ports`` is how many engines each may have; ``flags`` and ``env`` are given to each.
    """
    words = shlex.split(server.cli("workers", "join-command").stdout)
    variable, token = words[0].split("=", 1)
    assert words[1:4] == ["gpustack", "start", "--server-url"]
    machines = {}
    with contextlib.ExitStack() as stack:
        for host in net.hosts:
            bin_dir = place / "bin" if engine is None else engine.bin_dir
            own = [*words[3:], "--worker-port", "10150", "--bin-dir", str(bin_dir), *flags]
            machine = Machine(host, place, [*own, "--service-port-range", a_port_range(ports)], env or {})
            stack.callback(machine.stop)
            machine.switch_on(env={variable: token})
            machines[host.address] = machine
        for machine in machines.values():
            assert machine.running is not None
            wait_ready(machine.running)
        yield machines
