"""A real door: the process that ``gpustack start`` runs, with a data directory and a supervisor of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from gpustack.app import doors
from gpustack.app.children import role_command
from gpustack.dataplane.door import instance_credential
from gpustack.kit.local_sockets import Channel, Message, connect_local
from gpustack.kit.process import identify, pid_space
from gpustack.worker.runners.records import EngineRecord, remove_record, write_record

TOKEN = "the-token-of-this-door"


@dataclass
class Doorway:
    """Where a door answers, whichever process that is. ``listener`` is the test's own copy of what it accepts on."""

    data_dir: Path
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.data_dir / "door.log").read_text()

    def engine_at(self, instance_id: int, port: int, **fields: Any) -> None:
        """Write down an engine, as the worker does; its process is the test's own unless ``fields`` say otherwise."""
        who = identify(os.getpid())
        assert who is not None
        record = EngineRecord(
            instance_id=instance_id,
            instance_name="tiny",
            port=port,
            log_path="",
            argv_digest="",
            pid=who.pid,
            started=who.started,
            pid_space=pid_space(),
        )
        write_record(self.data_dir / "run", replace(record, **fields))

    def forget(self, instance_id: int) -> None:
        """Remove the record of an engine."""
        remove_record(self.data_dir / "run", instance_id)

    def headers(self, instance_id: int, token: str = TOKEN) -> dict[str, str]:
        """Return what opens the door to one instance."""
        return {"Authorization": f"Bearer {instance_credential(token, instance_id)}"}

    def client(self) -> httpx.AsyncClient:
        """Return a client of the door."""
        return httpx.AsyncClient(base_url=self.url, timeout=20)


@dataclass
class RunningDoor(Doorway):
    """A door in the background."""

    process: subprocess.Popen[bytes]

    def channel(self) -> Channel:
        """Connect as a supervisor does."""
        path = doors.socket_path(self.data_dir / "run", self.process.pid)
        return Channel(connect_local(path, timeout=20))

    def keep(self, channel: Channel, **sockets: socket.socket) -> None:
        """Claim the door and have it keep ``sockets``."""
        ask(channel, {"do": "claim"})
        ask(channel, {"do": "keep", "names": list(sockets)}, [sock.fileno() for sock in sockets.values()])


def ask(channel: Channel, content: dict[str, Any], fds: list[int] | None = None) -> Message:
    """Give an order and return the answer."""
    channel.send(content, fds or [])
    reply = channel.receive()
    assert reply.content["ok"], reply.content
    return reply


@contextlib.contextmanager
def a_door(data_dir: Path, *, accepts: bool = True, keep_seconds: float = 60) -> Iterator[RunningDoor]:
    """Run a door until the block ends."""
    (data_dir / "run" / "instances").mkdir(parents=True)
    (data_dir / "worker").mkdir()
    (data_dir / "worker" / "door_token").write_text(TOKEN + "\n")
    listener = socket.create_server(("127.0.0.1", 0))
    own = {"door": listener.fileno()} if accepts else {}
    reader, writer = os.pipe()
    with (data_dir / "door.log").open("ab") as log:
        process = subprocess.Popen(
            role_command("door", data_dir, writer, own, parent=None),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writer, *own.values()],
            start_new_session=True,
        )
    os.close(writer)
    assert process.stdin is not None
    configuration = {"settings": {"data_dir": str(data_dir), "debug": False}, "keep_seconds": keep_seconds}
    with process.stdin as pipe:
        pipe.write(json.dumps(configuration).encode())
    door = RunningDoor(data_dir, listener, process)
    try:
        with os.fdopen(reader, "rb", 0) as told:
            assert select.select([told], [], [], 60)[0], "the door says nothing"
            assert told.readline() == b"READY\n", door.log
        yield door
    finally:
        listener.close()
        process.send_signal(signal.SIGKILL)
        process.wait()
