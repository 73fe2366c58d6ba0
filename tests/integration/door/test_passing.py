"""Requests through a real door to engines and to the worker."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.dataplane.door import instance_credential
from gpustack.kit.process import identify
from support.door import TOKEN, RunningDoor, a_door
from support.fake_engine import (
    FakeEngine,
    Script,
    Seen,
    dies_in_the_middle_of_json,
    hangs_up_silently,
    says_ok,
    streams,
    thinks,
)
from support.running import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    with a_door(tmp_path_factory.mktemp("door")) as made:
        yield made


@pytest.fixture
def door(running: RunningDoor) -> Iterator[RunningDoor]:
    """The door, with nothing behind it."""
    yield running
    running.forget(1)
    (running.data_dir / "worker" / "door_token").write_text(TOKEN + "\n")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_a_request_reaches_the_engine_without_the_credential(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        headers = {**door.headers(1), "X-Request-Id": "abc", "Cookie": "a=b", "X-Other": "stays"}
        answer = await client.post("/instances/1/v1/chat%20x?a=1%2F2", json={"n": 1}, headers=headers)

    assert (answer.status_code, answer.json()["echo"]) == (200, {"n": 1})
    assert "x-gpustack-door" not in answer.headers
    assert "set-cookie" not in answer.headers
    (seen,) = engine.seen
    assert (seen.method, seen.path) == ("POST", "/v1/chat%20x?a=1%2F2")
    assert (seen.headers["x-request-id"], seen.headers["x-other"]) == ("abc", "stays")
    assert not {"authorization", "cookie"} & seen.headers.keys()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"Bearer {instance_credential(TOKEN, 2)}"},
        {"Authorization": f"Bearer {instance_credential('other', 1)}"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
    ids=["none", "wrong", "the token itself", "another instance's", "another door's", "no text"],
)
async def test_a_wrong_credential_opens_nothing(door: RunningDoor, headers: dict[str, str]) -> None:
    async with FakeEngine(says_ok) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        answer = await client.post("/instances/1/v1/completions", json={}, headers=headers)

    assert (answer.status_code, answer.headers["x-gpustack-door"]) == (401, "unreached")
    assert not engine.seen


@pytest.mark.parametrize(
    "path",
    [
        "/instances/2/v1/x", "/instances/1", "/instances/", "/instances/1x/v1", "/instances/-1/v1",
        "/instances/../instances/2/v1/x", "/instances/99999999999999999999/v1", "/instances/%31/v1",
    ],
)  # fmt: skip
async def test_what_is_not_here_is_said(door: RunningDoor, path: str) -> None:
    async with door.client() as client:
        request = client.build_request("POST", door.url, json={}, headers=door.headers(2))
        request.url = httpx.URL(door.url).copy_with(raw_path=path.encode())
        answer = await client.send(request)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


async def test_an_engine_that_is_gone_is_said_so_that_another_can_be_tried(door: RunningDoor) -> None:
    door.engine_at(1, free_port())
    async with door.client() as client:
        answer = await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
    assert (answer.status_code, answer.headers["x-gpustack-door"]) == (503, "unreached")


@pytest.mark.parametrize(
    "fields",
    [{"pid": 0}, {"pid": 2**22 + 1}, {"started": 1.0}, {"pid_space": "another boot"}],
    ids=["not started", "ended", "its number is another's", "before a restart of the machine"],
)
async def test_another_program_at_the_port_of_an_engine_that_is_gone_sees_no_request(
    door: RunningDoor, fields: dict[str, Any]
) -> None:
    async with FakeEngine(says_ok) as stranger, door.client() as client:
        door.engine_at(1, stranger.port, **fields)
        answer = await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
    assert (answer.status_code, answer.headers["x-gpustack-door"]) == (503, "unreached")
    assert not stranger.seen


async def test_an_engine_that_ends_gives_its_port_to_nobody(door: RunningDoor) -> None:
    """The record did not change: the process is looked at again, if not for every request."""
    child = subprocess.Popen(["sleep", "60"])
    who = identify(child.pid)
    assert who is not None
    async with FakeEngine(says_ok) as engine, door.client() as client:
        door.engine_at(1, engine.port, pid=who.pid, started=who.started)
        assert (await client.post("/instances/1/x", json={}, headers=door.headers(1))).status_code == 200
        child.kill()
        child.wait()
        await asyncio.sleep(1.1)
        assert (await client.post("/instances/1/x", json={}, headers=door.headers(1))).status_code == 503
    assert len(engine.seen) == 1


async def test_an_engine_that_dies_over_a_request_is_said_so_that_no_other_is_tried(
    door: RunningDoor,
) -> None:
    async with FakeEngine(hangs_up_silently) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        answer = await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
    assert (answer.status_code, answer.headers["x-gpustack-door"]) == (502, "died")


async def test_an_answer_that_breaks_off_is_not_taken_for_whole(door: RunningDoor) -> None:
    async with FakeEngine(dies_in_the_middle_of_json) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))


async def test_an_engine_cannot_speak_for_the_door(door: RunningDoor) -> None:
    async def pretends(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-gpustack-door: unreached\r\ncontent-length: 2\r\n\r\nok")

    async with FakeEngine(pretends) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        answer = await client.get("/instances/1/metrics", headers=door.headers(1))
    assert (answer.status_code, answer.text) == (200, "ok")
    assert "x-gpustack-door" not in answer.headers


async def test_a_stream_comes_piece_by_piece(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, door.client() as client:
        engine.script = streams(engine)
        door.engine_at(1, engine.port)
        async with client.stream("POST", "/instances/1/v1/x", json={}, headers=door.headers(1)) as answer:
            pieces = answer.aiter_text()
            assert '"n": 1' in await anext(pieces)
            engine.go_on.set()
            assert "[DONE]" in "".join([piece async for piece in pieces])


@pytest.mark.parametrize("script", [streams, thinks])
async def test_a_client_that_leaves_is_noticed_by_the_engine(
    door: RunningDoor, script: Callable[[FakeEngine], Script]
) -> None:
    async with FakeEngine(says_ok) as engine:
        engine.script = script(engine)
        door.engine_at(1, engine.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        credential = door.headers(1)["Authorization"]
        writer.write(
            b"POST /instances/1/v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
            + f"authorization: {credential}\r\n\r\n{{}}".encode()
        )
        async with asyncio.timeout(20):
            while not engine.seen:
                await asyncio.sleep(0.01)
            writer.close()
            await engine.aborted.wait()
        del reader


async def test_the_door_looks_again_when_an_engine_moves_or_the_token_changes(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as first, FakeEngine(says_ok) as second, door.client() as client:
        for engine in (first, second):
            door.engine_at(1, engine.port)
            answer = await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
            assert answer.status_code == 200
        assert (len(first.seen), len(second.seen)) == (1, 1)

        (door.data_dir / "worker" / "door_token").write_text("another-token-of-this-door")
        old, new = door.headers(1), door.headers(1, "another-token-of-this-door")
        assert (await client.post("/instances/1/v1/x", json={}, headers=old)).status_code == 401
        assert (await client.post("/instances/1/v1/x", json={}, headers=new)).status_code == 200
        (door.data_dir / "worker" / "door_token").unlink()
        assert (await client.post("/instances/1/v1/x", json={}, headers=new)).status_code == 503
        door.forget(1)


async def test_a_half_written_record_is_no_engine(door: RunningDoor) -> None:
    (door.data_dir / "run" / "instances" / "1.json").write_text('{"instance_id": 1, "po')
    async with door.client() as client:
        answer = await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
    assert answer.status_code == 404


async def test_unused_connections_to_an_engine_are_let_go(door: RunningDoor) -> None:
    gone = asyncio.Event()

    async def notices(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says_ok(seen, reader, writer)
        if not await reader.read(1):
            gone.set()
        raise ConnectionError

    async with FakeEngine(notices) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        await client.post("/instances/1/v1/x", json={}, headers=door.headers(1))
        await asyncio.wait_for(gone.wait(), 20)


async def test_the_worker_checks_for_itself_and_may_be_away_for_a_moment(
    tmp_path: Path,
) -> None:
    async def worker(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nlog")

    with a_door(tmp_path) as door:
        async with door.client() as client:
            assert (await client.get("/healthz")).text == "ok"
            assert (await client.get("/serveLogs/1")).status_code == 503
            with door.channel() as channel, socket.create_server(("127.0.0.1", 0)) as listener:
                door.keep(channel, worker=listener)
                asking = asyncio.create_task(
                    client.get("/serveLogs/1?tail=5", headers={"Authorization": "Bearer theirs"})
                )
                await asyncio.sleep(0.3)
                assert not asking.done()
                engine = FakeEngine(worker)
                serving = await asyncio.start_server(engine._serve, sock=listener)
                async with serving:
                    assert (await asyncio.wait_for(asking, 20)).text == "log"
                (seen,) = engine.seen
                assert (seen.path, seen.headers["authorization"]) == ("/serveLogs/1?tail=5", "Bearer theirs")


def test_without_anybody_above_the_door_serves_on(tmp_path: Path) -> None:
    with a_door(tmp_path, keep_seconds=0.1) as door:
        door.engine_at(1, free_port())
        eventually(lambda: "no supervisor" in door.log, "the door notices that it is alone", seconds=20)
        assert httpx.get(f"{door.url}/healthz", timeout=20).text == "ok"
        assert door.process.poll() is None
