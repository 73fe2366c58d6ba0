"""A role as a process of its own: ``python -m gpustack.app.child server|gateway|worker|door ARGUMENTS``.

ARGUMENTS is JSON without secrets: the descriptor to announce readiness on, the listening sockets, and the parent to end
with, which a door does not. What follows is for who reads ``ps``.
The configuration comes by standard input, as a line of JSON, once the supervisor knows it; meanwhile the modules are
imported. Each later line is another configuration, which has to be applied without a restart.
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
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from gpustack.app.parent import Parent
from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.logs import configure, set_debug, tell
from gpustack.kit.process import end_with_parent

log = logging.getLogger(__name__)

#: Bytes of a configuration: a file of settings may have certificates in it.
_LONGEST = 64 << 20

Run = Callable[[dict[str, Any], dict[str, socket.socket], Parent], Awaitable[None]]


def main() -> int:
    """Run one role until it is asked to end; returns the exit status."""
    role, arguments = sys.argv[1], json.loads(sys.argv[2])
    _keep_to_ourselves([arguments["ready_fd"], *arguments["sockets"].values()])
    if arguments["parent"] is not None:
        end_with_parent(arguments["parent"])
    run = _role(role)
    orders = _own_input()
    given = _first_line(orders)
    if not given:
        return 1  # whoever started it is gone
    configuration = json.loads(given)
    configure(role, debug=configuration["settings"]["debug"])
    sockets = {name: socket.socket(fileno=fd) for name, fd in arguments["sockets"].items()}
    parent = Parent(arguments["ready_fd"])
    tell(parent.say)
    # What was imported lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # A page of a list makes thousands of objects without a cycle: looking for one at every 700 is wasted.
    gc.set_threshold(10_000, 20, 20)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_until_signalled(run(configuration, sockets, parent), _follow(orders, parent)))
    except GPUStackError as error:
        parent.refused(error.message)
        return 1
    except OSError as error:
        log.exception("ended unexpectedly")
        parent.refused(system_line(error))
        return 1


def _role(role: str) -> Run:
    if role == "server":
        from gpustack.app import server_role

        return server_role.run
    if role == "door":
        from gpustack.app import door_role

        return door_role.run
    if role.startswith("gateway"):
        from gpustack.app import gateway_role

        return gateway_role.run
    from gpustack.app import worker_role

    return worker_role.run


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _keep_to_ourselves(fds: Iterable[int]) -> None:
    """Have no program that we start inherit ``fds``, which uvloop would hand on whatever is said of closing.

    Whoever holds the pipe counts as this role, and whoever holds a socket keeps its port.
    """
    for fd in fds:
        os.set_inheritable(fd, False)


def _own_input() -> int:
    """Return standard input as a descriptor of ours alone: what we start reads nothing in its place."""
    own = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


def _first_line(fd: int) -> bytes:
    """Return the first line. The next one comes only when this one has been understood."""
    line = bytearray()
    while not line.endswith(b"\n") and (piece := os.read(fd, 65536)):
        line += piece
    return bytes(line)


async def _follow(fd: int, parent: Parent) -> None:
    """Apply each further configuration that comes."""
    stream = asyncio.StreamReader(limit=_LONGEST)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0)
    )
    try:
        while line := await stream.readline():
            configuration = json.loads(line)
            set_debug(configuration["settings"]["debug"])
            parent.reload(configuration)
    finally:
        transport.close()


async def _until_signalled(work: Awaitable[None], beside: Coroutine[Any, Any, None]) -> int:
    """Run ``work`` until it ends or a signal asks for the end, which it gets as a cancellation; ``beside`` ends with it."""
    loop = asyncio.get_running_loop()
    following = asyncio.create_task(beside)
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
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
