"""Doors as their supervisor handles them: found with what they keep, given orders, retired, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gpustack import __version__
from gpustack.app import doors
from gpustack.app.sockets import Wanted
from gpustack.kit import local_sockets
from gpustack.kit.local_sockets import Channel, Message
from gpustack.kit.process import ProcessId, describe_exit, forked_by_us, identify, is_running

#: Seconds that the streams through a door may go on after another has taken its place.
RETIRED_DRAIN = 600.0
#: Seconds for a door to answer its supervisor, which takes a millisecond.
_ANSWER = 5.0


@dataclass(slots=True)
class Door:
    """One running door, started by us or found."""

    who: ProcessId
    version: str = __version__
    channel: Channel | None = None
    process: subprocess.Popen[bytes] | None = None

    def ended(self) -> str:
        """Fetch and tell how it ended, once it has; it takes no more orders."""
        if self.channel is not None:
            self.channel.close()
        status = self.process.poll() if self.process is not None else forked_by_us(self.who.pid)
        return "has ended" if status is None else describe_exit(status)


@dataclass(slots=True)
class Found:
    """A door that ran before us, with the sockets that it kept."""

    door: Door
    sockets: dict[str, socket.socket] = field(default_factory=dict)

    def take(self, others: dict[str, socket.socket]) -> None:
        """Add what an older door keeps and this one was not given yet."""
        for name, sock in others.items():
            if name == "door" or name in self.sockets:
                sock.close()
            else:
                self.sockets[name] = sock

    def suits(self, wanted: Wanted | None) -> bool:
        """Tell whether the door accepts on the port that is ``wanted``, or on none when none is."""
        own = self.sockets.get("door")
        return own is None if wanted is None else own is not None and wanted.fits(own)


def forked_before() -> list[Door]:
    """Return what the program that ours replaced had started and left running, such as retired doors; fetch the rest.

    They are children of ours that nothing else knows of. Call it before anything is started. Blocks.
    """
    children = [child.pid for child in psutil.Process().children()]
    left = [who for pid in children if forked_by_us(pid) is None and (who := identify(pid)) is not None]
    return [Door(who) for who in left]


def find(run_dir: Path) -> Found | None:
    """Return the door that serves, claimed for us with everything it keeps; None when there is none. Blocks.

    One that does not answer is ended. Older ones, left by a supervisor that died as it exchanged them, retire.
    """
    found: Found | None = None
    for record in doors.running_doors(run_dir):
        if record.retired or not local_sockets.AVAILABLE:
            continue
        door = Door(record.process, record.version)
        try:
            door.channel = Channel(local_sockets.connect_local(doors.socket_path(run_dir, record.pid)))
            reply = ask(door, {"do": "claim"})
            sockets = dict(zip(reply.content["names"], map(_socket, reply.fds), strict=True))
            if found is None:
                found = Found(door, sockets)
            else:
                found.take(sockets)
                retire(run_dir, door)
        except OSError:
            kill(door.who)
    return found


def lent_by_gateways(run_dir: Path) -> dict[str, socket.socket]:
    """Return the sockets that gateways accept on which ran before us: they have them where no door is left. Blocks."""
    found: dict[str, socket.socket] = {}
    for record in doors.running_doors(run_dir, doors.GATEWAYS):
        if not local_sockets.AVAILABLE:
            break
        gateway = Door(record.process, record.version)
        try:
            path = doors.socket_path(run_dir, record.pid, doors.GATEWAYS)
            with Channel(local_sockets.connect_local(path)) as channel:
                gateway.channel = channel
                reply = ask(gateway, {"do": "claim"})
        except OSError:
            kill(gateway.who)  # it would keep the ports from us, and answer nobody
            continue
        for name, fd in zip(reply.content["names"], reply.fds, strict=True):
            if name in found:
                os.close(fd)
            else:
                found[name] = _socket(fd)
    return found


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=fd)


def ask(door: Door, content: dict[str, Any], fds: list[int] | None = None) -> Message:
    """Give an order and return the answer. Raises OSError when the door does not follow it."""
    if door.channel is None:
        return Message({})
    door.channel.send(content, fds or [])
    reply = door.channel.receive()
    if not reply.content.get("ok"):
        raise OSError(str(reply.content.get("error", "refused")))
    return reply


def kill(who: ProcessId) -> None:
    with contextlib.suppress(ProcessLookupError):
        if is_running(who):
            os.kill(who.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    deadline = time.monotonic() + _ANSWER
    while is_running(who) and time.monotonic() < deadline:
        time.sleep(0.01)


def retire(run_dir: Path, door: Door) -> None:
    """Have a door close its port at once, and end once its streams have; one that does not is ended. Blocks."""
    try:
        if door.channel is None and local_sockets.AVAILABLE:
            door.channel = Channel(local_sockets.connect_local(doors.socket_path(run_dir, door.who.pid)))
        ask(door, {"do": "retire", "drain": RETIRED_DRAIN})
    except OSError:
        kill(door.who)


def drop(found: Found, name: str) -> None:
    """Have a found door close one of the sockets that it keeps. Blocks."""
    with contextlib.suppress(OSError):
        ask(found.door, {"do": "drop", "names": [name]})
