"""The door as one of the supervisor's units: found or started, given the sockets to keep, exchanged, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app import doors
from gpustack.app.children import ATTEMPTS, FIRST_WAIT, STABLE, announcements, open_log, role_command
from gpustack.app.door_orders import Door, Found, ask, kill, retire
from gpustack.kit import local_sockets
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.kit.local_sockets import Channel
from gpustack.kit.process import OWN_SESSION, describe_exit, identify, wait_gone
from gpustack.kit.tasks import Tasks, to_the_end

#: Seconds that the sockets wait in a door for the next supervisor.
KEEP_SECONDS = 30.0
#: Seconds for a new door to be ready, which takes half of one on an idle machine.
READY_WITHIN = 30.0


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
        forked_before: Sequence[Door] = (),
        debug: bool,
        log_path: Path,
        say: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._data_dir = data_dir
        self._run_dir = data_dir / "run"
        self._configuration: dict[str, Any] = {
            "settings": {"data_dir": str(data_dir), "debug": debug},
            "keep_seconds": KEEP_SECONDS,
        }
        self._own, self._kept = own, kept
        self._log_path = log_path
        self._say, self._changed = say, changed
        self._door = found.door if found is not None else None
        #: Those that let their last streams end.
        self._retired = [
            door for door in forked_before if found is None or door.who.pid != found.door.who.pid
        ]
        self._tasks = Tasks("door")
        #: One door is begun at a time; held until it is known as ours.
        self._beginning = asyncio.Lock()
        self._exchanged = asyncio.Event()
        self._state = "starting"
        self._restarts = 0
        self._ready = asyncio.Event()

    @property
    def outdated(self) -> bool:
        """Whether the door is another GPUStack than this one."""
        return self._door is not None and self._door.version != __version__

    async def run(self) -> None:
        """Keep a door running until cancelled. Raises GPUStackError when none can be started at all."""
        async with self._tasks:
            for retired in self._retired:
                self._tasks.start("retired", self._see_off(retired))
            door = await self._first()
            backoff = Backoff(first=FIRST_WAIT, limit=15.0)
            while True:
                self._set("ready")
                self._ready.set()
                began = time.monotonic()
                await self._gone_or_exchanged(door)
                if self._door is door:
                    if time.monotonic() - began > STABLE:
                        backoff.reset()
                    door = await self._again(door, backoff)
                elif self._door is not None:
                    door = self._door

    async def _gone_or_exchanged(self, door: Door) -> None:
        """Return when ``door`` has ended, or another has taken its place."""
        self._exchanged.clear()
        events = [asyncio.create_task(wait_gone(door.who)), asyncio.create_task(self._exchanged.wait())]
        try:
            if self._door is door:
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
            await asyncio.gather(*events, return_exceptions=True)

    async def _see_off(self, door: Door) -> None:
        """Wait for the end of a retired door, and fetch its exit status where it is a child of ours."""
        await wait_gone(door.who)
        door.ended()
        doors.remove(self._run_dir, door.who.pid)
        self._retired.remove(door)

    async def ready(self) -> None:
        """Return once a door has been ready for the first time."""
        await self._ready.wait()

    def describe(self) -> dict[str, Any]:
        """Return the state as ``gpustack status`` shows it."""
        pid = self._door.who.pid if self._door is not None and self._state == "ready" else None
        return {"pid": pid, "state": self._state, "restarts": self._restarts}

    async def use_debug(self, on: bool) -> str:
        """Have the door log everything, or no more than usual; return what was in the way, empty for nothing."""
        self._configuration["settings"] = {**self._configuration["settings"], "debug": on}
        door = self._door
        if door is None or self._state != "ready" or not local_sockets.AVAILABLE:
            return ""
        try:
            await asyncio.to_thread(ask, door, {"do": "debug", "on": on})
        except OSError as error:
            return f"door does not take the new settings: {error}"
        return ""

    async def exchange(self) -> None:
        """Put a new door in the place of the present one, which lets its streams end. Nobody is refused meanwhile."""
        async with self._beginning:
            new = await self._begin()
            old, self._door = self._door, new
            self._exchanged.set()
        self._changed()
        if old is not None:
            await self._retire(old)

    async def tidy(self) -> None:
        """Retire what a supervisor that died had just begun, and nobody found when this one started."""
        async with self._beginning:
            known = {door.who.pid for door in [*self._retired, *([self._door] if self._door else [])]}
            for record in await asyncio.to_thread(doors.running_doors, self._run_dir):
                if record.pid not in known and not record.retired:
                    await self._retire(Door(record.process, record.version))

    async def _retire(self, door: Door) -> None:
        self._retired.append(door)
        self._tasks.start("retired", self._see_off(door))
        await asyncio.to_thread(retire, self._run_dir, door)

    async def stop(self, grace: float) -> None:
        """End the door, and those that still let their streams end, within ``grace`` seconds or for good."""
        ours = [*self._retired, *([self._door] if self._door is not None else [])]
        # From memory too: somebody may have removed what is written down.
        await asyncio.gather(
            asyncio.to_thread(doors.end_doors, self._run_dir, grace=grace),
            asyncio.to_thread(doors.end_processes, [door.who for door in ours], grace=grace),
        )
        for door in ours:
            door.ended()
        self._set("stopped")

    async def _first(self) -> Door:
        if self._door is not None:
            try:
                await self._hand_over(self._door)
                return self._door
            except OSError:
                await asyncio.to_thread(kill, self._door.who)
                self._door.ended()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._door = await self._begin()
                return self._door
            except GPUStackError:
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    async def _again(self, dead: Door, backoff: Backoff) -> Door:
        """Start a door after one died, however often that takes: engines answer on this machine without it."""
        why = dead.ended()
        doors.remove(self._run_dir, dead.who.pid)
        while True:
            wait = backoff.next()
            self._say(f"door {why}; starting it again in {wait:.1f} s (log: {self._log_path})")
            self._set("restarting")
            await asyncio.sleep(wait)
            self._restarts += 1
            try:
                async with self._beginning:
                    if self._door is None or self._door is dead:  # else exchanged meanwhile
                        self._door = await self._begin()
                    return self._door
            except GPUStackError as error:
                why = f"cannot be started: {error.message}"

    async def _begin(self) -> Door:
        """Start a door and return it once it serves and keeps our sockets."""
        process, reader = self._spawn()
        try:
            return await self._begun(process, reader)
        except BaseException:
            # Also when we are to end meanwhile: nobody else knows of it yet.
            process.kill()
            await to_the_end(asyncio.to_thread(process.wait))
            raise

    async def _begun(self, process: subprocess.Popen[bytes], reader: int) -> Door:
        """Wait until a door that was just started serves, and hand it our sockets."""
        who = identify(process.pid)
        refusal, served = "", False
        try:
            async with asyncio.timeout(READY_WITHIN), contextlib.aclosing(announcements(reader)) as lines:
                async for word, rest in lines:
                    refusal, served = rest, word == "READY"
                    break
        except TimeoutError:
            refusal = f"was ended after {READY_WITHIN:.0f} s"
        if who is None or not served:
            process.kill()
            status = await asyncio.to_thread(process.wait)
            raise GPUStackError(
                f"door {refusal or describe_exit(status)} before it was ready; its log is {self._log_path}"
            )
        door = Door(who, process=process)
        try:
            if local_sockets.AVAILABLE:
                path = doors.socket_path(self._run_dir, who.pid)
                door.channel = Channel(await asyncio.to_thread(local_sockets.connect_local, path))
            await self._hand_over(door)
        except OSError as error:
            door.ended()
            raise GPUStackError(f"door does not take our sockets: {error}") from error
        return door

    def _spawn(self) -> tuple[subprocess.Popen[bytes], int]:
        own = {} if self._own is None else {"door": self._own.fileno()}
        try:
            reader, writer = os.pipe()
        except OSError as error:
            raise GPUStackError(f"door cannot be started: {error}") from error
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

    async def _hand_over(self, door: Door) -> None:
        """Have the door keep our sockets, and know us as its supervisor. Raises OSError when it does not."""
        reply = await asyncio.to_thread(ask, door, {"do": "claim"})
        for fd in reply.fds:
            os.close(fd)
        names = list(self._kept)
        fds = [self._kept[name].fileno() for name in names]
        await asyncio.to_thread(ask, door, {"do": "keep", "names": names}, fds)
        gone = [name for name in reply.content.get("names", []) if name not in {*names, "door"}]
        await asyncio.to_thread(ask, door, {"do": "drop", "names": gone})

    def _set(self, state: str) -> None:
        self._state = state
        self._changed()
