"""Sockets between processes of one machine: found by a path, private by their mode, and able to carry descriptors.

    listener = listen_local(Path("run/door.sock"))
    channel = Channel(connect_local(Path("run/door.sock")))
    channel.send({"do": "keep"}, [sock.fileno()])
    message = channel.receive()          # or: await channel.receive_async()

Where the system has none (Windows) :data:`AVAILABLE` is False, and whoever wanted to hand something over opens it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gpustack.kit.errors import GPUStackError

#: Whether this system has such sockets, and can pass descriptors over them.
AVAILABLE = hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")
#: Bytes of a path that the system takes, with the end of the text.
_PATH_LIMIT = 108 if sys.platform == "linux" else 104
#: Descriptors and bytes in one message.
_MOST_FDS, _MOST_BYTES = 16, 1 << 20
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def listen_local(path: Path, *, backlog: int = 16) -> socket.socket:
    """Return a socket that listens at ``path``, for this user only; a file that is there already is replaced.

    Raises GPUStackError with one line when that cannot be.
    """
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as name:
            sock.bind(name)
        path.chmod(0o600)  # nobody can connect before it listens
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise GPUStackError(f"local socket {path} cannot be opened: {error.strerror or error}") from error
    return sock


def connect_local(path: Path, *, timeout: float = 5.0) -> socket.socket:
    """Return a connection to whoever listens at ``path``. Raises OSError when nobody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        with _short(path) as name:
            sock.connect(name)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for ``path`` that is short enough for the system's address of a socket."""
    if len(os.fsencode(path)) < _PATH_LIMIT:
        yield str(path)
        return
    if sys.platform != "linux":
        raise GPUStackError(
            f"{path} is too long for a socket (at most {_PATH_LIMIT - 1} bytes); choose a shorter --data-dir"
        )
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True)
class Message:
    """What came: a JSON object, and the descriptors with it, which are the receiver's to close."""

    content: dict[str, Any]
    fds: tuple[int, ...] = ()


class Channel:
    """One connection that carries messages: a line of JSON each, with descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the connection's own descriptor."""
        return self._socket.fileno()

    def send(self, content: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message. Blocks no longer than the socket's time-out; raises OSError when nobody reads."""
        data = json.dumps(content).encode() + b"\n"
        sent = socket.send_fds(self._socket, [data], list(fds)) if fds else self._socket.send(data)
        if sent < len(data):
            self._socket.sendall(data[sent:])

    def receive(self) -> Message:
        """Return the next message. Raises OSError when there will be none, TimeoutError when it takes too long."""
        while (message := self._taken()) is None:
            self._read()
        return message

    async def receive_async(self) -> Message:
        """Return the next message without blocking the loop. Raises OSError when there will be none."""
        self._socket.setblocking(False)
        while (message := self._taken()) is None:
            await _readable(self._socket)
            with contextlib.suppress(BlockingIOError):
                self._read()
        return message

    def close(self) -> None:
        """End the connection, and close descriptors of a message that never became whole."""
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _read(self) -> None:
        data, fds, flags, _ = socket.recv_fds(self._socket, 65536, _MOST_FDS, _CLOSE_ON_EXEC)
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if flags & socket.MSG_CTRUNC:
            raise ConnectionError("descriptors were lost on the way: too many files are open")
        if not data:
            raise ConnectionError("the other side has closed the connection")
        self._buffer += data
        if len(self._buffer) > _MOST_BYTES:
            raise ConnectionError("a message is too long")

    def _taken(self) -> Message | None:
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        fds, self._fds = tuple(self._fds), []
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ConnectionError("a message is no JSON") from error
        if not isinstance(content, dict):
            raise ConnectionError("a message is no JSON object")
        return Message(content, fds)


async def accept_local(listener: socket.socket) -> Channel:
    """Return the next connection to ``listener``."""
    listener.setblocking(False)
    while True:
        await _readable(listener)
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            return Channel(listener.accept()[0])


async def _readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    fd = sock.fileno()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
