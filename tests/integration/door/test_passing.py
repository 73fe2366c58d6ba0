"""Requests through a real door to engines and to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
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


@contextlib.asynccontextmanager
async def connected(
    door: RunningDoor,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the door as a client of few words."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.transport.abort()


def post(door: RunningDoor, path: str, body: bytes = b"{}", *lines: str) -> bytes:
    """Return a request to instance 1."""
    fields = ["host: x", f"authorization: {door.headers(1)['Authorization']}", *lines]
    fields.append(f"content-length: {len(body)}")
    return "\r\n".join([f"POST {path} HTTP/1.1", *fields, "", ""]).encode() + body


async def answer_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of an answer that says its length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(size)


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
        "/%69nstances/2/v1/x",
    ],
)  # fmt: skip
async def test_what_is_not_here_is_said(door: RunningDoor, path: str) -> None:
    async with door.client() as client:
        request = client.build_request("POST", door.url, json={}, headers=door.headers(2))
        request.url = httpx.URL(door.url).copy_with(raw_path=path.encode())
        answer = await client.send(request)
    assert answer.status_code == 404
    assert answer.headers["x-gpustack-door"] == "unreached"
    assert answer.json()["error"]["message"]


async def test_engines_are_not_asked_in_every_way(door: RunningDoor) -> None:
    async def has_a_head(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")

    async with FakeEngine(has_a_head) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        answer = await client.delete("/instances/1/v1/x", headers=door.headers(1))
        assert (answer.status_code, answer.headers["x-gpustack-door"]) == (405, "unreached")
        assert not engine.seen
        answer = await client.head("/instances/1/v1/x", headers=door.headers(1))
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "5")
    assert engine.seen[0].method == "HEAD"


@pytest.mark.parametrize(
    ("request_line", "field", "status"),
    [
        ("POST /instances/1/x HTTP/1.1", "content-length: 99999999999", b"413"),
        ("POST /tokens HTTP/1.1", "content-length: 2000000", b"413"),
        ("GET /instances/1/x HTTP/1.1", "upgrade: websocket\r\nconnection: upgrade", b"501"),
        ("no request", "x: y", b"400"),
    ],
)
async def test_what_no_engine_gets_to_see_is_said_whatever_is_wrong_with_it(
    door: RunningDoor, request_line: str, field: str, status: bytes
) -> None:
    async with FakeEngine(says_ok) as engine, connected(door) as (reader, writer):
        door.engine_at(1, engine.port)
        lines = [request_line, "host: x", f"authorization: {door.headers(1)['Authorization']}", field]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head, body = await answer_of(reader)
    assert head.startswith((b"http/1.1 " + status, b"http/1.0 " + status))
    assert b"x-gpustack-door: unreached" in head
    assert b'"error"' in body
    assert not engine.seen


async def test_requests_sent_at_once_are_answered_in_their_order(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, connected(door) as (reader, writer):
        engine.script = thinks(engine)
        door.engine_at(1, engine.port)
        writer.write(b"".join(post(door, f"/instances/1/{number}", b"%d" % number) for number in range(3)))
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        while not engine.seen:
            await asyncio.sleep(0.01)
        engine.go_on.set()
        bodies = [(await answer_of(reader))[1] for _ in range(4)]
    assert [f'"echo": {number}'.encode() in bodies[number] for number in range(3)] == [True] * 3
    assert bodies[3] == b"ok"


async def test_a_request_that_waited_for_its_turn_finds_no_other_program_at_the_port(
    door: RunningDoor,
) -> None:
    """It was judged as it came, and its engine ended before the answer that was in its way."""
    child = subprocess.Popen(["sleep", "60"])
    who = identify(child.pid)
    assert who is not None
    async with FakeEngine(says_ok) as engine, connected(door) as (reader, writer):
        engine.script = thinks(engine)
        door.engine_at(1, engine.port, pid=who.pid, started=who.started)
        writer.write(post(door, "/instances/1/a") + post(door, "/instances/1/b"))
        while not engine.seen:
            await asyncio.sleep(0.01)
        child.kill()
        child.wait()
        await asyncio.sleep(1.1)
        engine.go_on.set()
        assert b" 200 " in (await answer_of(reader))[0]
        head, _ = await answer_of(reader)
    assert b" 503 " in head
    assert b"x-gpustack-door: unreached" in head
    assert len(engine.seen) == 1


async def test_the_name_of_a_request_passes_both_ways_and_a_word_on_its_origin_does_not(
    door: RunningDoor,
) -> None:
    async def named(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = seen.headers["x-request-id"]
        writer.write(f"HTTP/1.1 200 OK\r\nx-request-id: {name}-seen\r\ncontent-length: 0\r\n\r\n".encode())

    async with FakeEngine(named) as engine, door.client() as client:
        door.engine_at(1, engine.port)
        headers = {**door.headers(1), "X-Request-Id": "abc", "X-Forwarded-For": "127.0.0.1", "X-Api-Key": "k"}
        answer = await client.post("/instances/1/x", json={}, headers=headers)
    assert answer.headers["x-request-id"] == "abc-seen"
    assert not {"x-forwarded-for", "x-api-key"} & engine.seen[0].headers.keys()


async def test_an_engine_waits_for_a_client_that_takes_nothing(door: RunningDoor) -> None:
    size, said = 64 << 20, 0
    stuck = asyncio.Event()

    async def says_much(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while said < size:
            writer.write(b"x" * (1 << 20))
            said += 1 << 20
            try:
                await asyncio.wait_for(writer.drain(), 0.3)
            except TimeoutError:
                stuck.set()
                await writer.drain()

    async with FakeEngine(says_much) as engine, connected(door) as (reader, writer):
        door.engine_at(1, engine.port)
        writer.write(post(door, "/instances/1/x"))
        await reader.readuntil(b"\r\n\r\n")
        await stuck.wait()
        assert said < size
        left = size
        while left:
            left -= len(await reader.read(1 << 20))


def test_a_door_takes_no_more_than_it_needs() -> None:
    heavy = (
        "uvicorn",
        "litestar",
        "pydantic",
        "piccolo",
        "httpx",
        "gpustack.server",
        "gpustack.db",
    )
    code = f"import gpustack.app.door_role, sys; print(*[each for each in {heavy} if each in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == []


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
