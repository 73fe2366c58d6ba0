"""The door as one of the supervisor's units: found or started, given the sockets to keep, exchanged, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app import doors
from gpustack.app.children import ATTEMPTS, FIRST_WAIT, STABLE, announcements, open_log, role_command
from gpustack.app.sockets import Wanted
from gpustack.kit import local_sockets
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.kit.local_sockets import Channel, Message
from gpustack.kit.process import (
    OWN_SESSION,
    ProcessId,
    describe_exit,
    forked_by_us,
    identify,
    is_running,
    wait_gone,
)

#: Seconds that the sockets wait in a door for the next supervisor.
KEEP_SECONDS = 30.0
#: Seconds that the streams through a door may go on after another has taken its place.
RETIRED_DRAIN = 600.0
#: Seconds for a door to answer its supervisor, which takes a millisecond.
_ANSWER = 5.0


@dataclass(slots=True)
class _Door:
    """One running door, started by us or found."""

    who: ProcessId
    version: str = __version__
    channel: Channel | None = None
    process: subprocess.Popen[bytes] | None = None

    def ended(self) -> str:
        """Fetch and tell how it ended, once it has."""
        status = self.process.poll() if self.process is not None else forked_by_us(self.who.pid)
        return "has ended" if status is None else describe_exit(status)


@dataclass(slots=True)
class Found:
    """A door that ran before us, with the sockets that it kept."""

    door: _Door
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


def find(run_dir: Path) -> Found | None:
    """Return the door that serves, claimed for us with everything it keeps; None when there is none. Blocks.

    One that does not answer is ended. Older ones, left by a supervisor that died as it exchanged them, retire.
    """
    found: Found | None = None
    for record in doors.running_doors(run_dir):
        if record.retired or not local_sockets.AVAILABLE:
            continue
        door = _Door(record.process, record.version)
        try:
            door.channel = Channel(local_sockets.connect_local(doors.socket_path(run_dir, record.pid)))
            reply = _ask(door, {"do": "claim"})
            sockets = dict(zip(reply.content["names"], map(_socket, reply.fds), strict=True))
            if found is None:
                found = Found(door, sockets)
            else:
                found.take(sockets)
                _ask(door, {"do": "retire", "drain": RETIRED_DRAIN})
        except OSError:
            _kill(door.who)
    return found


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=fd)


def _ask(door: _Door, content: dict[str, Any], fds: list[int] | None = None) -> Message:
    """Give an order and return the answer. Raises OSError when the door does not follow it."""
    if door.channel is None:
        return Message({})
    door.channel.send(content, fds or [])
    reply = door.channel.receive()
    if not reply.content.get("ok"):
        raise OSError(str(reply.content.get("error", "refused")))
    return reply


def _kill(who: ProcessId) -> None:
    with contextlib.suppress(ProcessLookupError):
        if is_running(who):
            os.kill(who.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    deadline = time.monotonic() + _ANSWER
    while is_running(who) and time.monotonic() < deadline:
        time.sleep(0.01)


class DoorUnit:
    """Keeps a door running. ``kept`` are the sockets that it keeps for the next supervisor, ``own`` what it accepts on."""

    name = "door"

    def __init__(
        self,
        data_dir: Path,
        *,
        own: socket.socket | None,
        kept: dict[str, socket.socket],
        found: Found | None,
        debug: bool,
        log_path: Path,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._data_dir = data_dir
        self._run_dir = data_dir / "run"
        self._configuration = {
            "settings": {"data_dir": str(data_dir), "debug": debug},
            "keep_seconds": KEEP_SECONDS,
        }
        self._own, self._kept = own, kept
        self._log_path = log_path
        self._say, self._changed = say, changed
        self._door = found.door if found is not None else None
        self._retired: list[_Door] = []
        self._state = "starting"
        self._restarts = 0
        self._ready = asyncio.Event()

    @property
    def outdated(self) -> bool:
        """Whether the door is another GPUStack than this one."""
        return self._door is not None and self._door.version != __version__

    async def run(self) -> None:
        """Keep a door running until cancelled. Raises GPUStackError when none can be started at all."""
        door = await self._first()
        backoff = Backoff(first=FIRST_WAIT, limit=15.0)
        while True:
            self._set("ready")
            self._ready.set()
            began = time.monotonic()
            await wait_gone(door.who)
            doors.remove(self._run_dir, door.who.pid)
            if self._door is not door:
                door = self._door or door  # exchanged; the old one ended as it should
                continue
            if time.monotonic() - began > STABLE:
                backoff.reset()
            door = await self._again(door.ended(), backoff)

    async def ready(self) -> None:
        """Return once a door has been ready for the first time."""
        await self._ready.wait()

    def describe(self) -> dict[str, Any]:
        """Return the state as ``gpustack status`` shows it."""
        pid = self._door.who.pid if self._door is not None and self._state == "ready" else None
        return {"pid": pid, "state": self._state, "restarts": self._restarts}

    async def exchange(self) -> None:
        """Put a new door in the place of the present one, which lets its streams end. Nobody is refused meanwhile."""
        old = self._door
        self._door = await self._begin()
        self._changed()
        if old is not None:
            self._retired = [each for each in [*self._retired, old] if is_running(each.who)]
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_ask, old, {"do": "retire", "drain": RETIRED_DRAIN})

    async def stop(self, grace: float) -> None:
        """End the door, and those that still let their streams end, within ``grace`` seconds or for good."""
        await asyncio.to_thread(doors.end_doors, self._run_dir, grace=grace)
        for door in [*self._retired, *([self._door] if self._door is not None else [])]:
            door.ended()
            if door.channel is not None:
                door.channel.close()
        self._set("stopped")

    async def _first(self) -> _Door:
        if self._door is not None:
            try:
                await self._hand_over(self._door)
                return self._door
            except OSError:
                _kill(self._door.who)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._door = await self._begin()
                return self._door
            except GPUStackError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    async def _again(self, why: str, backoff: Backoff) -> _Door:
        """Start a door after one died, however often that takes: engines answer on this machine without it."""
        while True:
            wait = backoff.next()
            self._say(f"door {why}; starting it again in {wait:.1f} s (log: {self._log_path})")
            self._set("restarting")
            await asyncio.sleep(wait)
            self._restarts += 1
            try:
                self._door = await self._begin()
                return self._door
            except GPUStackError as error:
                why = f"cannot be started: {error.message}"

    async def _begin(self) -> _Door:
        """Start a door and return it once it serves and keeps our sockets."""
        process, reader = self._spawn()
        try:
            return await self._begun(process, reader)
        except BaseException:
            # Also when we are to end meanwhile: nobody else knows of it yet.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise

    async def _begun(self, process: subprocess.Popen[bytes], reader: int) -> _Door:
        """Wait until a door that was just started serves, and hand it our sockets."""
        who = identify(process.pid)
        refusal, served = "", False
        async with contextlib.aclosing(announcements(reader)) as lines:
            async for word, rest in lines:
                refusal, served = rest, word == "READY"
                break
        if who is None or not served:
            process.kill()
            status = await asyncio.to_thread(process.wait)
            raise GPUStackError(
                f"door {refusal or describe_exit(status)} before it was ready; its log is {self._log_path}"
            )
        door = _Door(who, process=process)
        try:
            if local_sockets.AVAILABLE:
                path = doors.socket_path(self._run_dir, who.pid)
                door.channel = Channel(await asyncio.to_thread(local_sockets.connect_local, path))
            await self._hand_over(door)
        except OSError as error:
            raise GPUStackError(f"door does not take our sockets: {error}") from error
        return door

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        own = {} if self._own is None else {"door": self._own.fileno()}
        reader, writer = os.pipe()
        try:
            with open_log(self._log_path) as log:
                process = subprocess.Popen(
                    role_command(self.name, self._data_dir, writer, own, parent=None),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writer, *own.values()],
                    **OWN_SESSION,
                )
        except OSError as error:
            os.close(reader)
            raise GPUStackError(f"door cannot be started: {error}") from error
        finally:
            os.close(writer)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(self._configuration).encode())
        return process, reader

    async def _hand_over(self, door: _Door) -> None:
        """Have the door keep our sockets, and know us as its supervisor. Raises OSError when it does not."""
        reply = await asyncio.to_thread(_ask, door, {"do": "claim"})
        for fd in reply.fds:
            os.close(fd)
        names = list(self._kept)
        fds = [self._kept[name].fileno() for name in names]
        await asyncio.to_thread(_ask, door, {"do": "keep", "names": names}, fds)
        gone = [name for name in reply.content.get("names", []) if name not in {*names, "door"}]
        await asyncio.to_thread(_ask, door, {"do": "drop", "names": gone})

    def _set(self, state: str) -> None:
        self._state = state
        self._changed()


def retire(found: Found) -> None:
    """Have a found door close its port at once, and end once its streams have. Blocks."""
    try:
        _ask(found.door, {"do": "retire", "drain": RETIRED_DRAIN})
    except OSError:
        _kill(found.door.who)


def drop(found: Found, name: str) -> None:
    """Have a found door close one of the sockets that it keeps. Blocks."""
    with contextlib.suppress(OSError):
        _ask(found.door, {"do": "drop", "names": [name]})
