"""Messages and open descriptors between processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.kit.local_sockets import Channel, accept_local, connect_local, listen_local


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a connection."""
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.settimeout(5)
    with Channel(one) as first, Channel(other) as second:
        yield first, second


def test_a_listening_socket_goes_to_another_process_and_outlives_ours(tmp_path: Path) -> None:
    receiver = """
import socket, sys
from pathlib import Path
from gpustack.kit.local_sockets import Channel, connect_local
channel = Channel(connect_local(Path(sys.argv[1])))
(fd,) = channel.receive().fds
listener = socket.socket(fileno=fd)
channel.send({"ok": True})
client, _ = listener.accept()
client.sendall(b"from the other process")
"""
    path = tmp_path / "keeper.sock"
    with listen_local(path) as listener, socket.create_server(("127.0.0.1", 0)) as public:
        process = subprocess.Popen([sys.executable, "-c", receiver, str(path)])
        listener.settimeout(20)
        with Channel(listener.accept()[0]) as channel:
            channel.send({"do": "keep"}, [public.fileno()])
            assert channel.receive().content == {"ok": True}
        address = public.getsockname()
    with socket.create_connection(address, timeout=5) as client:
        assert client.recv(100) == b"from the other process"
    assert process.wait(10) == 0


def test_descriptors_stay_with_their_message(pair: tuple[Channel, Channel]) -> None:
    sender, receiver = pair
    reader, writer = os.pipe()
    sender.send({"n": 1})
    sender.send({"n": 2}, [reader, writer])
    sender.send({"n": 3})
    os.close(reader)
    os.close(writer)

    messages = [receiver.receive() for _ in range(3)]

    assert [message.content["n"] for message in messages] == [1, 2, 3]
    received = [fd for message in messages for fd in message.fds]
    assert len(received) == 2
    assert not any(os.get_inheritable(fd) for fd in received)
    os.write(received[1], b"through")
    assert os.read(received[0], 10) == b"through"
    for fd in received:
        os.close(fd)


def test_a_path_longer_than_the_system_takes_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20) / ("longer" * 20)
    folder.mkdir(parents=True)
    path = folder / "door.sock"
    if sys.platform != "linux":
        with pytest.raises(GPUStackError, match="shorter --data-dir"):
            listen_local(path)
        return
    with listen_local(path) as listener, connect_local(path) as client:
        client.sendall(b'{"hello": 1}\n')
        with Channel(listener.accept()[0]) as channel:
            assert channel.receive().content == {"hello": 1}
    assert path.exists()


def test_the_socket_is_private_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    listen_local(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect_local(path)
    with listen_local(path), connect_local(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(GPUStackError, match=r"missing/a\.sock cannot be opened"):
        listen_local(tmp_path / "missing" / "a.sock")


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b"x" * (1 << 21)])
def test_what_is_no_message_ends_the_conversation(pair: tuple[Channel, Channel], line: bytes) -> None:
    sender, receiver = pair

    def say() -> None:
        with contextlib.suppress(OSError):  # the receiver stops reading
            sender._socket.sendall(line)

    talking = threading.Thread(target=say)
    talking.start()
    with pytest.raises(ConnectionError):
        receiver.receive()
    receiver.close()
    talking.join(10)


def test_nobody_waits_for_ever_for_one_who_left(pair: tuple[Channel, Channel]) -> None:
    sender, receiver = pair
    sender.close()
    with pytest.raises(ConnectionError):
        receiver.receive()


async def test_the_loop_goes_on_while_a_message_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with listen_local(path) as listener:
        accepting = asyncio.create_task(accept_local(listener))
        client = Channel(await asyncio.to_thread(connect_local, path))
        server = await accepting
        waiting = asyncio.create_task(server.receive_async())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        client.send({"late": True})
        assert (await asyncio.wait_for(waiting, 10)).content == {"late": True}
        client.close()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(server.receive_async(), 10)
        server.close()
