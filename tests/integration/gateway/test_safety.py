"""Whatever a client or an engine does: memory is bounded, others are not disturbed, and nothing passes for what it is not."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from pathlib import Path

import pytest

from gpustack.dataplane.http import Limits
from gpustack.plugin.routing import Timeouts
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import (
    ASKED,
    CHAT,
    MARK,
    OK,
    SOON,
    Running,
    Script,
    a_gateway,
    a_recorder,
    a_request,
    a_route,
    a_target,
    an_engine,
    fields_of,
    request_of,
    status_of,
)

# Compressed bombs -----------------------------------------------------------------------------------------


async def test_a_compressed_answer_passes_as_it_is_and_nobody_unpacks_it(running: Running) -> None:
    bomb = gzip.compress(bytes(20 << 20))
    assert len(bomb) < 50_000
    for kind in (b"application/json", b"text/event-stream"):
        answer = (
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b"
        )
        async with an_engine(answer % (kind, len(bomb), bomb)) as port:
            running.apply(a_route(a_target(1, port)))
            asked = json.dumps({**CHAT, "stream": kind == b"text/event-stream"}).encode()
            async with running.client.stream("POST", "/v1/chat/completions", content=asked) as answered:
                got = b"".join([piece async for piece in answered.aiter_raw()])
            assert (answered.status_code, answered.headers["content-encoding"], got) == (200, "gzip", bomb)
    assert all(record.estimated for record in await running.records(2))


async def test_an_engine_is_never_asked_for_a_compressed_answer_which_could_not_be_metered(
    running: Running,
) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        await running.say(a_request("POST /v1/chat/completions", "Accept-Encoding: gzip, br", body=ASKED))
    (head,) = heads
    assert fields_of(head, "accept-encoding") in ([], [b"identity"])


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "zstd", "identity, gzip", "x-gzip", "GZIP"])
async def test_a_compressed_request_is_refused_by_its_head(running: Running, coding: str) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        bomb = gzip.compress(bytes(1 << 20))
        answer = await running.say(
            a_request("POST /v1/chat/completions", f"Content-Encoding: {coding}", body=bomb)
        )
        assert status_of(answer) == 415
    assert heads == []


# Engines that do what engines should not ------------------------------------------------------------------


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(b"\x16\x03\x01\x00\xff garbage \r\n\r\n")
    await writer.drain()
    await reader.read()


async def _endless_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"x-more: and more\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0)


async def _endless_interims(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    while not writer.is_closing():
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0)


async def _endless_extensions(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(OK + b"transfer-encoding: chunked\r\n\r\n2;")
    while not writer.is_closing():
        writer.write(b"a=b;" * 1000)
        await writer.drain()
        await asyncio.sleep(0)


async def _half_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    await writer.drain()
    writer.close()


def _says(answer: bytes, *, then_ends: bool = True) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(answer)
        await writer.drain()
        if then_ends:
            writer.close()
        else:
            await reader.read()

    return script


#: What an engine does, and the status that its client gets; None: an answer that visibly is not whole.
BAD_ENGINES: dict[str, tuple[Script, int | None]] = {
    "garbage": (_garbage, 502),
    "an endless head": (_endless_head, 502),
    "interim answers without end": (_endless_interims, 502),
    "chunk extensions without end": (_endless_extensions, None),
    "half a head": (_half_a_head, 502),
    "half a body": (_says(OK + b'content-length: 50\r\n\r\n{"half'), None),
    "half a chunk": (_says(OK + b'transfer-encoding: chunked\r\n\r\n9\r\n{"half'), None),
    "a length too short": (_says(OK + b'content-length: 2\r\n\r\n{"a":1}', then_ends=False), 502),
    "two lengths": (_says(OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", then_ends=False), 502),
    "a second answer": (_says((OK + b"content-length: 2\r\n\r\n{}") * 2, then_ends=False), 502),
    "another protocol": (
        _says(b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", then_ends=False),
        502,
    ),
    "a header that splits": (
        _says(OK + b"x: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}", then_ends=False),
        502,
    ),
}


async def test_a_bad_engine_costs_its_own_clients_one_clear_error_and_nobody_else_anything(
    running: Running,
) -> None:
    with FakeEngine() as good:
        running.apply(a_route(a_target(100, good), name="good"))
        for number, (name, (script, status)) in enumerate(BAD_ENGINES.items(), start=1):
            async with an_engine(script) as port:
                running.apply(a_route(a_target(number, port)))
                bad = asyncio.create_task(running.say(a_request(body=ASKED)))
                others = [
                    running.client.post("/v1/chat/completions", json={**CHAT, "model": "good"})
                    for _ in range(3)
                ]
                assert [each.status_code for each in await asyncio.gather(*others)] == [200] * 3, name
                answer = await bad
                if status is None:
                    assert not _whole(answer), name
                else:
                    assert status_of(answer) == status, name
                    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "engine_failed", (
                        name
                    )
        await running.at_rest()


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    if length := fields_of(head, "content-length"):
        return len(body) >= int(length[0])
    return body.endswith(b"0\r\n\r\n")


async def test_what_an_engine_sends_beyond_its_answer_reaches_nobody(running: Running) -> None:
    """Not even the next client, who gets a connection of its own."""
    asked = 0

    async def stuffs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await request_of(reader)
            asked += 1
            writer.write(OK + b"content-length: 9\r\n\r\n" + b'{"a":%3d}' % asked)
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(OK + b"content-length: 12\r\n\r\n" + b'{"evil":"x"}')

    async with an_engine(stuffs) as port:
        running.apply(a_route(a_target(1, port)))
        for number in range(1, 6):
            answer = await running.client.post("/v1/chat/completions", json=CHAT)
            assert answer.json() == {"a": number}
            await asyncio.sleep(0.02)


async def test_an_engines_answer_sets_nothing_in_our_name(running: Running) -> None:
    said = OK + (
        b"set-cookie: gpustack_session=stolen\r\naccess-control-allow-origin: *\r\nx-request-id: forged\r\n"
        b"server: engine\r\nconnection: x-inner\r\nx-inner: 1\r\ncontent-length: 2\r\n\r\n{}"
    )
    async with an_engine(said) as port:
        running.apply(a_route(a_target(1, port)))
        answer = await running.client.post("/v1/chat/completions", json=CHAT)
    for name in ("set-cookie", "access-control-allow-origin", "server", "x-inner"):
        assert name not in answer.headers
    assert answer.headers.get_list("x-request-id") != ["forged"]


# Bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","stream":true,"stream_options":{},"a":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"model":"tiny","stream":true,"stream_options":{"a":"' + b"x" * 70_000 + b'"}}',
        b'{"model":' + b" " * 140_000 + b'"tiny","stream":true,"stream_options":{}}',
        b'{"model":"tiny","stream":"' + b"x" * 140_000 + b'","stream":true,"stream_options":{}}',
    ],
    ids=["nested", "long options", "long blanks", "long value"],
)
async def test_a_body_that_is_too_much_to_change_is_refused_before_anybody_waits_for_it(
    running: Running, body: bytes
) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        answer = await running.say(a_request(body=body))
        assert status_of(answer) == 400
        assert not running.busy
    assert heads == []


async def test_a_fault_of_our_own_costs_one_request_and_nothing_else(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> bytes:
        raise RuntimeError("a bug")

    async with a_recorder() as (port, _):
        running.apply(a_route(a_target(1, port, slots=1)))
        with monkeypatch.context() as patched:
            patched.setattr("gpustack.dataplane.gateway.inference.request_head", fails)
            assert status_of(await running.say(a_request(body=ASKED))) == 500
        assert not running.busy


# Memory ---------------------------------------------------------------------------------------------------


async def test_all_bodies_together_stay_within_one_budget(tmp_path: Path) -> None:
    """The usual limits, a hundredth of their size: bodies of 64 MB, 256 MB together."""
    limits = Limits(body_bytes=640 << 10, all_bodies_bytes=2560 << 10, sweep_seconds=0.05)
    most = 0
    async with a_gateway(tmp_path, limits=limits) as running:
        with FakeEngine(Behaviour(time_to_first_token=0.3)) as engine:
            running.apply(a_route(a_target(1, engine)))
            body = json.dumps({**CHAT, "pad": "x" * (600 << 10)}).encode()
            asking = [asyncio.create_task(running.say(a_request(body=body))) for _ in range(10)]
            while not all(each.done() for each in asking):
                most = max(most, running.server.buffered)
                await asyncio.sleep(0.002)
            statuses = sorted(status_of(each.result()) for each in asking)
        assert set(statuses) == {200, 503}
        # They are all of one user, who has three quarters at most.
        assert statuses.count(200) >= 3
        assert (1200 << 10) < most <= limits.all_bodies_bytes
        refused = next(each.result() for each in asking if status_of(each.result()) == 503)
        assert fields_of(refused.partition(b"\r\n\r\n")[0], "retry-after")
        too_large = await running.say(a_request(body=json.dumps({**CHAT, "pad": "x" * (650 << 10)}).encode()))
        assert status_of(too_large) == 413
        await running.at_rest()


@pytest.mark.parametrize("path", ["/v2/auth/login", "/v1/chat/completions", "/nowhere"])
async def test_bodies_of_strangers_that_lack_their_end_disturb_nobody_with_a_key(
    tmp_path: Path, path: str
) -> None:
    """All that they send together would be twice what may be held."""
    limits = Limits(all_bodies_bytes=10 << 20, body_seconds=1.0, head_seconds=1.0, sweep_seconds=0.05)
    async with (
        a_recorder() as (server, asked),
        a_gateway(tmp_path, limits=limits, server_at=(server, MARK)) as running,
    ):
        with FakeEngine() as engine:
            running.apply(a_route(a_target(1, engine)))
            attack: list[asyncio.StreamWriter] = []
            for count, size in (
                (10, 1 << 20),
                (35, 256 << 10),
                (40, 16 << 10),
                (80, 2000),
                (60, 300),
                (40, 100),
            ):
                for _ in range(count):
                    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.write(a_request(f"POST {path}", body=b"x" * size, key=None)[:-1])
                    attack.append(writer)
            for pad in (10, 300 << 10, 4 << 20) * 3:
                asking = json.dumps({**CHAT, "pad": "x" * pad}).encode()
                assert status_of(await running.say(a_request(body=asking))) == 200
                assert running.server.buffered <= limits.peer_bodies_bytes
            async with asyncio.timeout(SOON):
                while running.server.buffered:
                    await asyncio.sleep(0.05)
            for writer in attack:
                writer.transport.abort()
    assert asked == []


async def test_a_flood_of_headers_is_refused_and_others_are_served(running: Running) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        floods = [
            a_request("POST /v1/chat/completions", *(f"X-{number}: y" for number in range(150)), body=ASKED),
            a_request("POST /v1/chat/completions", "X-Long: " + "y" * 70_000, body=ASKED),
            b"POST /v1/chat/completions HTTP/1.1\r\n" + b"X: y\r\n" * 50_000,
            a_request("GET /v1/models?" + "y" * 9000),
        ]
        asking = [asyncio.create_task(running.say(flood)) for flood in floods * 3]
        good = [await running.client.post("/v1/chat/completions", json=CHAT) for _ in range(5)]
        assert [each.status_code for each in good] == [200] * 5
        answers = [status_of(await each) for each in asking]
    assert set(answers) == {431, 414}
    assert running.server.buffered == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_slow_reader_of_a_large_answer_makes_the_engine_wait(
    running: Running, streamed: bool
) -> None:
    size = 24 << 20
    sent = 0
    chunk = b"data: " + b"x" * 65530 + b"\n\n"

    async def talks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        kind = b"text/event-stream" if streamed else b"application/octet-stream"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
        while sent < size:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            sent += len(chunk)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with an_engine(talks) as port:
        running.apply(a_route(a_target(1, port)))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", running.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=16 << 10)
        body = json.dumps({**CHAT, "stream": streamed}).encode()
        writer.write(a_request(body=body))
        async with asyncio.timeout(SOON):
            await reader.readuntil(b"\r\n\r\n")
            # It stands still when two looks in a row see the same.
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.1)
        (connection,) = running.server.connections
        assert connection._transport.get_write_buffer_size() < 1 << 20
        assert sent < size
        async with asyncio.timeout(SOON):
            read = 0
            while piece := await reader.read(1 << 20):
                read += len(piece)
        assert read >= size
        writer.close()
    await running.at_rest()


async def test_many_streams_that_are_cancelled_at_once_leave_nothing(running: Running) -> None:
    count = 60
    with FakeEngine(Behaviour(tokens_per_second=5, answer="word " * 200)) as engine:
        running.apply(a_route(a_target(1, engine, slots=count - 10)))
        tasks = len(asyncio.all_tasks())
        body = json.dumps({**CHAT, "stream": True}).encode()
        clients = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(a_request(body=body))
            clients.append((reader, writer))
        async with asyncio.timeout(SOON):
            for reader, _ in clients[: count - 10]:
                await reader.readuntil(b"data: ")
            while running.gateway.admission.waiting("tiny")[0] < 10:
                await asyncio.sleep(0.01)
        assert running.busy["exchanges"] == count - 10
        for _, writer in clients:
            writer.transport.abort()
        await running.at_rest()
        assert running.server.connections == set()
        assert len(asyncio.all_tasks()) <= tasks
    records = await running.records(count - 10)
    assert {record.status for record in records} == {499}


async def test_an_engine_that_never_begins_is_given_up_while_others_are_served(running: Running) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with an_engine(silent) as port:
        with FakeEngine() as engine:
            running.apply(
                a_route(a_target(1, port), timeouts=Timeouts(first_byte=0.2)),
                a_route(a_target(2, engine), name="good"),
            )
            stuck = [asyncio.create_task(running.say(a_request(body=ASKED))) for _ in range(20)]
            answer = await running.client.post("/v1/chat/completions", json={**CHAT, "model": "good"})
            assert answer.status_code == 200
            assert {status_of(await each) for each in stuck} == {504}
    await running.at_rest()
