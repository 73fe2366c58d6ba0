"""A door keeps sockets for the next supervisor, changes hands, and gives way to another door."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from gpustack.app import doors
from support.door import a_door, ask
from support.fake_engine import FakeEngine, says_ok, streams
from support.running import eventually


def refuses(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_socket_outlives_its_supervisor_and_goes_to_the_next(tmp_path: Path) -> None:
    with a_door(tmp_path) as door:
        public = socket.create_server(("127.0.0.1", 0))
        address = public.getsockname()
        with door.channel() as first:
            door.keep(first, http=public)
        public.close()  # the first supervisor is gone
        with socket.create_connection(address, timeout=5) as client, door.channel() as second:
            reply = ask(second, {"do": "claim"})
            assert set(reply.content["names"]) == {"door", "http"}
            found = dict(zip(reply.content["names"], reply.fds, strict=True))
            with socket.socket(fileno=found["http"]) as taken, socket.socket(fileno=found["door"]) as own:
                assert taken.getsockname() == address
                assert own.getsockname()[1] == door.port
                served, _ = taken.accept()
                with served:
                    served.sendall(b"hello")
                assert client.recv(10) == b"hello"
            ask(second, {"do": "drop", "names": ["http", "unknown"]})
            assert refuses(address)


@pytest.mark.parametrize("engines", [0, 1])
def test_what_nobody_comes_for_is_closed_and_a_door_without_engines_ends(
    tmp_path: Path, engines: int
) -> None:
    with a_door(tmp_path, keep_seconds=0.3) as door:
        with door.channel() as channel, socket.create_server(("127.0.0.1", 0)) as public:
            address = public.getsockname()
            door.keep(channel, http=public)
            if engines:
                door.engine_at(1, 1)
        eventually(lambda: refuses(address), "the kept socket is closed", seconds=20)
        if engines:
            assert httpx.get(f"{door.url}/healthz", timeout=20).text == "ok"
        else:
            assert door.process.wait(20) == 0
            assert list((tmp_path / "run" / "doors").iterdir()) == []


def test_a_claim_in_time_keeps_everything_open(tmp_path: Path) -> None:
    with a_door(tmp_path, keep_seconds=0.5) as door, socket.create_server(("127.0.0.1", 0)) as public:
        first = door.channel()
        door.keep(first, http=public)
        second = door.channel()
        ask(second, {"do": "claim"})
        first.close()  # the one before it is noticed late: it is no news
        time.sleep(1.5)  # nothing tells that something does not happen
        assert "no supervisor" not in door.log
        reply = ask(second, {"do": "claim"})
        assert "http" in reply.content["names"]
        for fd in reply.fds:
            os.close(fd)
        second.close()


async def test_a_retired_door_lets_streams_end_and_takes_nothing_new(tmp_path: Path) -> None:
    with a_door(tmp_path / "one") as door:
        async with FakeEngine(says_ok) as engine, door.client() as client:
            engine.script = streams(engine)
            door.engine_at(1, engine.port)
            async with client.stream("POST", "/instances/1/v1/x", json={}, headers=door.headers(1)) as answer:
                pieces = answer.aiter_text()
                await anext(pieces)
                with door.channel() as channel:
                    await asyncio.to_thread(ask, channel, {"do": "retire", "drain": 60})
                (record,) = doors.running_doors(tmp_path / "one" / "run")
                assert record.retired
                port = door.port
                door.listener.close()
                assert refuses(("127.0.0.1", port))
                engine.go_on.set()
                assert "[DONE]" in "".join([piece async for piece in pieces])
        assert await asyncio.to_thread(door.process.wait, 20) == 0
        assert doors.running_doors(tmp_path / "one" / "run") == []


def test_ending_doors_ends_the_stubborn_too(tmp_path: Path) -> None:
    with a_door(tmp_path) as door:
        door.process.send_signal(signal.SIGSTOP)
        # Ended by force; a test's own child stays a zombie, which counts as ended.
        assert doors.end_doors(tmp_path / "run", grace=0.3) == 1
        assert door.process.wait(10) == -signal.SIGKILL
        assert list((tmp_path / "run" / "doors").iterdir()) == []


def test_an_order_that_is_none_is_refused(tmp_path: Path) -> None:
    with a_door(tmp_path, accepts=False) as door, door.channel() as channel:
        channel.send({"do": "dance"})
        assert "dance" in channel.receive().content["error"]
        door.process.terminate()
        assert door.process.wait(20) == 0
