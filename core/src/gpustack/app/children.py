"""One child of the supervisor: started, watched, started again with back-off, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.kit.process import OWN_SESSION, describe_exit

#: Deaths in a row before the first readiness after which start-up is given up.
ATTEMPTS = 3
#: Seconds of running after which earlier deaths are forgiven.
STABLE = 30.0
#: Seconds until the first new start; deaths in a row double it.
FIRST_WAIT = 0.05
#: Seconds for a process to apply other settings.
_RELOAD = 5.0
#: Seconds to read what a process that has ended had said before.
_LAST_WORDS = 1.0
_LOG_LIMIT = 20 << 20


class Unit(Protocol):
    """Something that the supervisor keeps running."""

    name: str

    async def run(self) -> None:
        """Keep it running until cancelled; raises GPUStackError when it cannot be started at all."""

    async def ready(self) -> None:
        """Return once it has been ready for the first time."""

    def describe(self) -> dict[str, Any]:
        """Return ``pid``, ``state`` and ``restarts`` as ``gpustack status`` shows them."""

    async def stop(self, grace: float) -> None:
        """End it: politely, and after ``grace`` seconds for good."""


class Child(ABC):
    """A process of the supervisor's: started, watched, started again with back-off, ended. How it is run is another's."""

    def __init__(
        self, name: str, *, log_path: Path, say: Callable[[str], None], changed: Callable[[], None]
    ) -> None:
        self.name = name
        self._log_path = log_path
        self._say = say
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._state = "starting"
        self._restarts = 0
        self._ready = asyncio.Event()
        #: Why it will never be ready, when it is known.
        self._refusal = ""

    async def run(self) -> None:
        """Keep the process running until cancelled."""
        backoff = Backoff(first=FIRST_WAIT, limit=15.0)
        while True:
            began = time.monotonic()
            why = await self._run_once()
            if self._refusal and not self._ready.is_set():
                raise GPUStackError(self._refusal)
            if time.monotonic() - began > STABLE:
                backoff.reset()
            if not self._ready.is_set() and backoff.failures + 1 >= ATTEMPTS:
                raise GPUStackError(f"{self.name} {why} before it was ready; its log is {self._log_path}")
            wait = backoff.next()
            self._say(f"{self.name} {why}; starting it again in {wait:.1f} s (log: {self._log_path})")
            self._set("restarting")
            await asyncio.sleep(wait)
            self._restarts += 1

    async def ready(self) -> None:
        """Return once the process has been ready for the first time."""
        await self._ready.wait()

    def describe(self) -> dict[str, Any]:
        """Return the state as ``gpustack status`` shows it; ``pid`` is None between two lives."""
        process = self._process
        pid = process.pid if process is not None and process.returncode is None else None
        return {"pid": pid, "state": self._state, "restarts": self._restarts}

    async def stop(self, grace: float) -> None:
        """End the process: SIGTERM, and SIGKILL after ``grace`` seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()
        self._set("stopped")

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    @abstractmethod
    async def _run_once(self) -> str:
        """Run the process until it ends, and return how it did; also when it could not be started."""

    def _set(self, state: str) -> None:
        self._state = state
        self._changed()


class PythonChild(Child):
    """A role of ours (``server``, ``worker``) as a process.

    It says over a pipe when it is ready, or in one line why it never will be. Its configuration goes in by
    standard input, since secrets do not belong in arguments, and as late as possible: the child imports its
    modules while others still come up.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        configuration: Callable[[], Awaitable[dict[str, Any]]],
        sockets: dict[str, int],
        log_path: Path,
        say: Callable[[str], None],
        changed: Callable[[], None],
        outlives: bool = False,
    ) -> None:
        """``outlives`` is for one that serves on when the supervisor is killed."""
        super().__init__(name, log_path=log_path, say=say, changed=changed)
        self._outlives = outlives
        self._data_dir = data_dir
        self._configuration = configuration
        self._sockets = sockets
        #: Configurations that were sent, of which the running process has got at least one.
        self._number = 0
        self._configured = False
        self._reloading: asyncio.Future[str] | None = None

    async def reload(self) -> str:
        """Have the process apply the configuration as it is now; return what was in the way, empty for nothing.

        One that has got none yet begins with it.
        """
        process = self._process
        if process is None or process.returncode is not None or not self._configured:
            return ""
        said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reloading = said
        await self._send(process)
        ended = asyncio.create_task(process.wait())
        either: set[asyncio.Future[Any]] = {said, ended}
        done, _ = await asyncio.wait(either, timeout=_RELOAD, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if said.done():
            return f"{self.name}: {said.result()}" if said.result() else ""
        return "" if done else f"{self.name} does not answer; it takes the new settings once it does"

    async def _run_once(self) -> str:
        self._refusal = ""
        self._configured = False
        self._set("starting")
        try:
            process, reader = await self._spawn()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started to wait for it
            return f"cannot be started: {error}"
        self._process = process
        self._changed()
        listening = asyncio.create_task(self._listen(reader))
        feeding = asyncio.create_task(self._send(process))
        try:
            status = await process.wait()
            # What it has said last. The pipe ends with it, unless a program that it has left holds the other end.
            await asyncio.wait([listening], timeout=_LAST_WORDS)
        finally:
            # One that outlives us keeps its end open.
            for task in (listening, feeding):
                task.cancel()
            await asyncio.gather(listening, feeding, return_exceptions=True)
        return self._refusal or describe_exit(status)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, int]:
        """Start the process, and return it with the descriptor on which it says how it does."""
        reader, writer = os.pipe()
        try:
            with open_log(self._log_path) as log:
                process = await asyncio.create_subprocess_exec(
                    *role_command(
                        self.name,
                        self._data_dir,
                        writer,
                        self._sockets,
                        parent=None if self._outlives else os.getpid(),
                    ),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[writer, *self._sockets.values()],
                    **OWN_SESSION,
                )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return process, reader

    async def _send(self, process: asyncio.subprocess.Process) -> None:
        """Send the configuration as it is now."""
        configuration = await self._configuration()
        self._number += 1
        configuration["number"] = self._number
        self._configured = True
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(configuration).encode() + b"\n")
            await process.stdin.drain()

    async def _listen(self, fd: int) -> None:
        async for word, rest in announcements(fd):
            if word == "READY":
                self._set("ready")
                self._ready.set()
            elif word == "REFUSED":
                self._refusal = rest
            elif word == "SAY":
                self._say(f"{self.name}: {rest}")
            elif word == "RELOADED":
                number, _, trouble = rest.partition(" ")
                # One that comes too late is of a reload that nobody waits for any more.
                waiting = self._reloading is not None and not self._reloading.done()
                if waiting and self._reloading is not None and number == str(self._number):
                    self._reloading.set_result(trouble)


def role_command(
    name: str, data_dir: Path, ready_fd: int, sockets: dict[str, int], *, parent: int | None
) -> list[str]:
    """Return the command line of a role; without ``parent`` it outlives us. The directory is for who reads ``ps``."""
    arguments = json.dumps({"ready_fd": ready_fd, "sockets": sockets, "parent": parent})
    return [sys.executable, "-P", "-m", "gpustack.app.child", name, arguments, str(data_dir)]


async def announcements(fd: int) -> AsyncGenerator[tuple[str, str], None]:
    """Yield what a role says on its pipe, as a word and the rest of the line; the pipe ends with the role."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0)
    )
    try:
        while line := await stream.readline():
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            yield word, rest
    finally:
        transport.close()


def open_log(path: Path) -> Any:
    """Open the log for appending; a large one is put aside first, so that one older always stays.

    Its folder is made anew when somebody has removed it, and what cannot have a log at all goes without.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError:
        return Path(os.devnull).open("ab", buffering=0)


#: Signals that may ask the supervisor to end everything; without a terminal, a hang-up asks to read the settings again.
ENDING = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if sys.platform != "win32" else ()))
