"""The supervisor: a small process that keeps the others running and ends them all.

Run as ``python -m gpustack.app.supervisor FD``, where FD gives the settings as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from gpustack import __version__
from gpustack.app.children import ENDING, PythonChild, Unit
from gpustack.app.database import DatabaseUnit
from gpustack.app.rundir import RunDir
from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import LOOPBACK, listen, own_address
from gpustack.kit.paths import default_data_dir, make_dir
from gpustack.kit.process import identify
from gpustack.server.config import kept_secret

#: Seconds that each gets to end by itself, in this order; together under 10, even if all of them hang.
#: The server goes first, while engines still answer what is in flight; what it needs goes after it.
SERVER_GRACE = 4.0
WORKER_GRACE = 1.0
ENGINE_GRACE = 2.0
DATABASE_GRACE = 1.0
_OPEN_FILES = 65536


class Supervisor:
    """One ``gpustack start``: its sockets, its children, its end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.data_dir = Path(settings["data_dir"])
        self.log_dir = Path(settings["log_dir"])
        self._began = time.monotonic()
        self._run_dir = RunDir(self.data_dir)
        self._units: list[Unit] = []
        self._ready = False
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._identity = identify(os.getpid())
        self._url = ""

    async def run(self) -> int:
        """Start everything, wait for the end, and end everything; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._signalled)
        self._run_dir.claim()
        try:
            make_dir(self.log_dir, what="log directory")
            self._prepare()
            return await self._supervise()
        finally:
            self._run_dir.release()

    def _signalled(self) -> None:
        if self._ending.is_set():
            self._hurry.set()
            return
        self._ending.set()
        _say("stopping; once more stops at once")

    def _prepare(self) -> None:
        """Open the sockets and describe the children; nothing is started yet."""
        http = listen(self.settings["port"], option="--port")
        port = http.getsockname()[1]
        address = self.settings["advertise_address"] or own_address()
        self._url = f"http://{address}" + ("" if port == 80 else f":{port}")
        local = f"http://{LOOPBACK}:{port}"
        # One process decides, before two others would make one each.
        self.settings["token"] = kept_secret(self.data_dir / "token", self.settings["token"])
        database = DatabaseUnit(
            self.settings["database_url"], self.data_dir, self.log_dir, _say, self._publish
        )

        async def for_server() -> dict[str, Any]:
            return {"settings": self.settings, "database_url": await database.url(), "address": address}

        async def for_worker() -> dict[str, Any]:
            return {"settings": self.settings, "server_url": local, "address": address}

        self._units = [database, self._child("server", {"http": http.detach()}, for_server)]
        if not self.settings["disable_worker"]:
            door = listen(self.settings["worker_port"], host=LOOPBACK, option="--worker-port")
            self._units.append(self._child("worker", {"http": door.detach()}, for_worker))

    def _child(self, name: str, sockets: dict[str, int], configuration: Any) -> PythonChild:
        return PythonChild(
            name,
            configuration=configuration,
            sockets=sockets,
            log_path=self.log_dir / f"{name}.log",
            say=_say,
            changed=self._publish,
        )

    async def _supervise(self) -> int:
        keeping = {asyncio.create_task(unit.run(), name=unit.name): unit for unit in self._units}
        ending = asyncio.create_task(self._ending.wait())
        becoming_ready = asyncio.create_task(self._announce())
        status = 0
        try:
            await asyncio.wait([ending, *keeping], return_when=asyncio.FIRST_COMPLETED)
            for task in keeping:
                if task.done():
                    status = 1
                    _say(f"Error: {_one_line(task)}")
        finally:
            becoming_ready.cancel()
            for task in keeping:
                task.cancel()
            await self._end(keeping)
        return status

    async def _end(self, keeping: dict[asyncio.Task[None], Unit]) -> None:
        """Let the server answer what is in flight, then end the worker, its engines, and the database."""
        for name, grace in (("server", SERVER_GRACE), ("worker", WORKER_GRACE)):
            await self._or_hurry([unit.stop(grace) for unit in self._units if unit.name == name])
        for unit in self._units:
            if isinstance(unit, PythonChild):
                unit.kill()
        await asyncio.to_thread(self._end_engines)
        await self._or_hurry([unit.stop(DATABASE_GRACE) for unit in self._units])
        await asyncio.gather(*keeping, *(unit.stop(0) for unit in self._units), return_exceptions=True)

    async def _or_hurry(self, stops: list[Coroutine[Any, Any, None]]) -> None:
        """Wait for ``stops``, but no longer than until the second signal."""
        waiting: list[asyncio.Future[Any]] = [
            asyncio.gather(*stops),
            asyncio.create_task(self._hurry.wait()),
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _end_engines(self) -> None:
        """End the engines, which outlive every worker but not the whole."""
        from gpustack.worker.runners.ending import end_recorded

        end_recorded(self.data_dir / "run", grace=0 if self._hurry.is_set() else ENGINE_GRACE)

    async def _announce(self) -> None:
        await asyncio.gather(*(unit.ready() for unit in self._units))
        self._ready = True
        self._publish()
        seconds = time.monotonic() - self._began
        password = self.data_dir / "initial_admin_password"
        command = _command(self.data_dir)
        lines = [
            f"GPUStack {__version__} is ready after {seconds:.1f} s.",
            "",
            f"  URL       {self._url}",
            "  User      admin, password in " + str(password) if password.exists() else "  User      admin",
            f"  API docs  {self._url}/docs" if not self.settings["disable_openapi_docs"] else "",
            f"  Logs      {self.log_dir}",
            "",
            f"Next, in another terminal:  {command} deploy MODEL.gguf --name my-model",
        ]
        _say("\n".join(line for number, line in enumerate(lines) if line or lines[number - 1]))

    def _publish(self) -> None:
        identity = self._identity
        assert identity is not None
        self._run_dir.publish(
            {
                "pid": identity.pid,
                "started": identity.started,
                "url": self._url,
                "version": __version__,
                "ready": self._ready,
                "data_dir": str(self.data_dir),
                "log_dir": str(self.log_dir),
                "children": {unit.name: unit.describe() for unit in self._units if unit.describe()},
            }
        )


def _one_line(task: asyncio.Task[None]) -> str:
    error = task.exception() if not task.cancelled() else None
    if isinstance(error, GPUStackError):
        return error.message
    return f"{task.get_name()} ended unexpectedly ({type(error).__name__}: {error})"


def _command(data_dir: Path) -> str:
    """Return how to call this program from another shell."""
    here = Path(sys.executable).with_name("gpustack")
    found = shutil.which("gpustack")
    name = "gpustack" if found and Path(found).resolve() == here.resolve() else str(here)
    words = [name] if data_dir == default_data_dir() else [name, "--data-dir", str(data_dir)]
    return shlex.join(words)


def _say(text: str) -> None:
    """Tell the person in front of the terminal; nobody may be reading any more."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _allow_open_files() -> None:
    """Raise the limit of open files as far as this user may: each stream takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Run the supervisor with the settings that the given descriptor holds."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as pipe:
        settings = json.load(pipe)
    # The database's own user has to pass through our folders, whatever root's mask; secrets have modes of their own.
    os.umask(0o022)
    _allow_open_files()
    # A reader that went away (a closed terminal, `| head`) is no reason to end.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        return asyncio.run(Supervisor(settings).run())
    except GPUStackError as error:
        _say(f"Error: {error.message}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
