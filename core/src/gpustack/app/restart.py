"""``gpustack restart``: a supervisor checks its settings anew, and replaces its own program by the one on disk.

The order comes over the local socket ``<data-dir>/run/control.sock``, and the answer goes back over it when the new one
is ready. What the old program knows and the new one needs travels as :class:`Inherited`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

from gpustack.app.banner import say
from gpustack.app.children import ENDING
from gpustack.kit import local_sockets
from gpustack.kit.errors import GPUStackError, SettingsError
from gpustack.kit.local_sockets import Channel
from gpustack.kit.process import become

#: Seconds for the settings to be read, which takes half of one on an idle machine.
_CHECK = 60.0


@dataclass(slots=True)
class Inherited:
    """What one program hands down to the next in the same process. Descriptors, but for ``sockets``."""

    sockets: dict[str, socket.socket] = field(default_factory=dict)
    lock: int | None = None
    #: Connections of those who asked for the restart.
    waiting: list[int] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "sockets": {name: sock.fileno() for name, sock in self.sockets.items()},
            "lock": self.lock,
            "waiting": self.waiting,
        }

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """Return what :meth:`describe` told of."""
        for fd in [*described["sockets"].values(), *described["waiting"]]:
            os.set_inheritable(fd, False)
        return cls(
            sockets={name: socket.socket(fileno=fd) for name, fd in described["sockets"].items()},
            lock=described["lock"],
            waiting=list(described["waiting"]),
        )


class Control:
    """The place where a running supervisor takes orders."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "control.sock"
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Listen; without effect where the system has no local sockets."""
        if local_sockets.AVAILABLE:
            self._listener = local_sockets.listen_local(self.path)

    async def order(self) -> tuple[dict[str, Any], Channel]:
        """Return the next order with the connection to answer it on."""
        if self._listener is None:
            await asyncio.Event().wait()
        assert self._listener is not None
        while True:
            try:
                channel = await local_sockets.accept_local(self._listener)
            except OSError as error:  # such as too many open files
                say(f"no orders can be taken now: {error}")
                await asyncio.sleep(1)
                continue
            try:
                async with asyncio.timeout(5):
                    return (await channel.receive_async()).content, channel
            except (OSError, TimeoutError):
                channel.close()

    def close(self) -> None:
        """Listen no longer, and leave no file behind."""
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(OSError):
            self.path.unlink()


def answer(channel: Channel, **content: Any) -> None:
    """Answer an order and end the connection; whoever gave it may have left."""
    with contextlib.suppress(OSError), channel:
        channel.send(content)


async def settings_now(
    flags: Mapping[str, Any], data_dir: Path, database_url: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings as the installed program reads them now, for these flags and our environment, and warnings.

    ``database_url`` is the external database in use, if any; directories and another database are tried out as well.
    Raises SettingsError with a line for each thing that is wrong, or GPUStackError when the program does not run.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "gpustack.app.start",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise GPUStackError(f"the settings cannot be read: {error}") from error
    question = json.dumps({"flags": dict(flags), "database_url": database_url})
    try:
        async with asyncio.timeout(_CHECK):
            said, trouble = await process.communicate(question.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise GPUStackError(f"the settings could not be read within {_CHECK:.0f} s") from None
    try:
        found = json.loads(said)
    except ValueError:
        last = (trouble.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        raise GPUStackError(f"the installed GPUStack does not run: {last}") from None
    if "error" in found:
        raise SettingsError(found["error"]) if found["settings_are_wrong"] else GPUStackError(found["error"])
    settings: dict[str, Any] = found["settings"]
    if settings["data_dir"] != str(data_dir):
        raise SettingsError(
            f"the data directory is now to be {settings['data_dir']}; that takes a `gpustack stop` and a new start"
        )
    return settings, found["warnings"]


def replace(settings: dict[str, Any], flags: Mapping[str, Any], inherited: Inherited | None) -> NoReturn:
    """Become the supervisor that is on disk now, with ``settings``."""
    start = {
        "settings": settings,
        "flags": dict(flags),
        "inherited": None if inherited is None else inherited.describe(),
    }
    # Not a pipe: nobody reads before the end of what is written, and settings may be longer than a pipe holds.
    handed_down = tempfile.TemporaryFile()  # noqa: SIM115 - the program that reads it takes our place
    handed_down.write(json.dumps(start).encode())
    handed_down.seek(0)
    keep = [handed_down.fileno()]
    if inherited is not None:
        keep += [sock.fileno() for sock in inherited.sockets.values()]
        keep += [*inherited.waiting, *([] if inherited.lock is None else [inherited.lock])]
        # A signal that comes before the new program can take it would end it without its children.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    program = [
        sys.executable,
        "-P",
        "-m",
        "gpustack.app.supervisor",
        str(handed_down.fileno()),
        settings["data_dir"],
    ]
    become(program, keep_fds=keep)
