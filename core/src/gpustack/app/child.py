"""A role as a process of its own: ``python -m gpustack.app.child server|worker|door ARGUMENTS``.

ARGUMENTS is JSON without secrets: the descriptor to announce readiness on, the listening sockets, and the parent to end
with, which a door does not. What follows is for who reads ``ps``.
The configuration comes by standard input once the supervisor knows it; meanwhile the modules are imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.logs import configure, tell
from gpustack.kit.process import end_with_parent

log = logging.getLogger(__name__)

Run = Callable[[dict[str, Any], dict[str, socket.socket], Callable[[], None]], Awaitable[None]]


def main() -> int:
    """Run one role until it is asked to end; returns the exit status."""
    role, arguments = sys.argv[1], json.loads(sys.argv[2])
    if arguments["parent"] is not None:
        end_with_parent(arguments["parent"])
    run = _role(role)
    if not (given := sys.stdin.read()):
        return 1  # whoever started it is gone
    configuration = json.loads(given)
    configure(role, debug=configuration["settings"]["debug"])
    sockets = {name: socket.socket(fileno=fd) for name, fd in arguments["sockets"].items()}
    announce = _Announcer(arguments["ready_fd"])
    tell(announce.say)
    # What was imported lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # A page of a list makes thousands of objects without a cycle: looking for one at every 700 is wasted.
    gc.set_threshold(10_000, 20, 20)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_until_signalled(run(configuration, sockets, announce.ready)))
    except GPUStackError as error:
        announce.refused(error.message)
        return 1
    except OSError as error:
        log.exception("ended unexpectedly")
        announce.refused(system_line(error))
        return 1


def _role(role: str) -> Run:
    if role == "server":
        from gpustack.app import server_role

        return server_role.run
    if role == "door":
        from gpustack.app import door_role

        return door_role.run
    from gpustack.app import worker_role

    return worker_role.run


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


async def _until_signalled(work: Awaitable[None]) -> int:
    """Run ``work`` until it ends or a signal asks for the end, which it gets as a cancellation."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    asked = False

    def end() -> None:
        nonlocal asked
        # Asked again, it goes on ending: a second cancellation would cut off what is being drained. The death of a
        # parent is told once for each of its threads.
        if not asked:
            asked = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0


class _Announcer:
    """Writes to the supervisor's pipe, which may have lost its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> None:
        self._write("READY\n")

    def refused(self, message: str) -> None:
        self._write("REFUSED " + " ".join(message.split()) + "\n")

    def say(self, message: str) -> None:
        """Have the supervisor tell the person in front of the terminal."""
        self._write("SAY " + " ".join(message.split()) + "\n")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, line.encode())


if __name__ == "__main__":
    sys.exit(main())
