"""Several machines on this one: network namespaces on a bridge, each with a loopback of its own.

They share the file system and the clock, but reach each other by the network alone. Needs root and iproute2;
:func:`why_not` says what is missing. Names and addresses belong to this test process, and are taken away with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import psutil


@dataclass(frozen=True)
class Host:
    """One machine: what runs with :attr:`prefix` in front runs there."""

    name: str
    address: str
    #: Its cable: the other end of it is in the bridge.
    link: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=timeout, check=False
        )

    def pids(self) -> list[int]:
        """Return the processes that run there."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Take its power: every process there ends at once."""
        deadline = time.monotonic() + 10
        while pids := [pid for pid in self.pids() if _lives(pid)]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{self.name} does not end: {pids}"
            time.sleep(0.02)

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Put it back."""
        _ip("link", "set", self.link, "up")


@dataclass(frozen=True)
class Network:
    """The machines, and the address of the one that the tests themselves run on."""

    address: str
    hosts: tuple[Host, ...]


@cache
def why_not() -> str:
    """Return why there can be no hosts here; empty when there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip, of the package iproute2"
    try:
        with network(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """Give ``count`` machines until the block ends; then whatever runs on them is killed."""
    # Pids tell test processes apart, those of other containers have networks of their own.
    number = os.getpid() % 0xFFFF
    tag, net = f"gt{number:x}", f"10.{100 + number // 256 % 100}.{number % 256}"
    hosts = tuple(
        Host(f"{tag}h{each}", f"{net}.{10 + each}", f"{tag}v{each}") for each in range(1, count + 1)
    )
    bridge = f"{tag}br"
    _remove(bridge, hosts)
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _add(bridge, host, f"{net}.1")
        yield Network(f"{net}.1", hosts)
    finally:
        _remove(bridge, hosts)


def _add(bridge: str, host: Host, gateway: str) -> None:
    _ip("netns", "add", host.name)
    _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", host.link, "master", bridge, "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "lo", "up")
    _ip("-n", host.name, "link", "set", "eth0", "up")
    _ip("-n", host.name, "route", "add", "default", "via", gateway)


def _remove(bridge: str, hosts: tuple[Host, ...]) -> None:
    present = _ip("netns", "list").split()
    for host in hosts:
        if host.name in present:
            host.kill()
            _ip("netns", "delete", host.name)
        _ip("link", "delete", host.link, check=False)
    _ip("link", "delete", bridge, check=False)


def _ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=check)
    return done.stdout


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
