"""Whatever a client or an engine does: memory is bounded, others are not disturbed, and nothing passes for what it is not."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpustack.dataplane.http import Limits
from gpustack.plugin.routing import Principal, RoutingTable, Timeouts, digest, of_session
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import (
    CHAT,
    KEY,
    SOON,
    Running,
    Script,
    a_gateway,
    a_recorder,
    a_route,
    a_target,
    an_engine,
    nobody,
    request_of,
)

MARK = b"a-secret-of-this-installation"
COOKIE = "gpustack_session"
ASKED = json.dumps(CHAT).encode()
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


def a_request(
    first: str = "POST /v1/chat/completions", *lines: str, body: bytes = b"", key: str | None = KEY
) -> bytes:
    """Return a request that ends its connection."""
    fields = ["Host: gateway", "Connection: close", *lines]
    if key is not None:
        fields.append(f"Authorization: Bearer {key}")
    if body:
        fields.append(f"Content-Length: {len(body)}")
    return (
        f"{first} HTTP/1.1\r\n".encode()
        + "".join(f"{line}\r\n" for line in fields).encode("latin-1")
        + b"\r\n"
        + body
    )


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


def fields_of(head: bytes, name: str) -> list[bytes]:
    """Return the values of a header. An underscore counts as a hyphen, as some frameworks have it."""
    pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    return [value.strip() for key, _, value in pairs if key.lower().replace(b"_", b"-") == name.encode()]


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
        assert statuses.count(200) >= 4
        assert (2 << 20) < most <= limits.all_bodies_bytes + (256 << 10)
        refused = next(each.result() for each in asking if status_of(each.result()) == 503)
        assert fields_of(refused.partition(b"\r\n\r\n")[0], "retry-after")
        too_large = await running.say(a_request(body=json.dumps({**CHAT, "pad": "x" * (650 << 10)}).encode()))
        assert status_of(too_large) == 413
        await running.at_rest()


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


# Credentials ----------------------------------------------------------------------------------------------


async def test_no_log_and_no_journal_ever_holds_a_credential(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "logs" / "access.log"
    secrets = [KEY, "sk-wrong-0815", "door-secret-4711", MARK.decode(), "session-0815"]
    async with a_recorder() as (port, _), a_recorder() as (server, _):
        async with a_gateway(tmp_path, access_log=log, server_at=(server, MARK)) as running:
            running.apply(
                a_route(a_target(1, port, credential="door-secret-4711")),
                a_route(a_target(2, await nobody(), credential="door-secret-4711"), name="gone"),
            )
            for key in (KEY, "sk-wrong-0815"):
                for header in (
                    f"Authorization: Bearer {key}",
                    f"X-Api-Key: {key}",
                    f"Authorization: Basic {key}",
                ):
                    for first in (
                        "POST /v1/chat/completions",
                        "POST /v1/nothing",
                        f"GET /v1/models?key={key}",
                        f"POST /model/proxy/tiny/x?api_key={key}",
                        "DELETE /v1/models",
                    ):
                        body = b"" if first.startswith("GET") else ASKED
                        await running.say(a_request(first, header, body=body, key=None))
                await running.say(a_request("POST /v1/chat/completions", body=b"{", key=key))
                await running.say(a_request(body=json.dumps({**CHAT, "model": "gone"}).encode(), key=key))
                await running.say(
                    b"POST /v1/x HTTP/1.1\r\nAuthorization: Bearer " + key.encode() + b"\x00\r\n\r\n"
                )
            await running.say(a_request("GET /v2/models", "Cookie: gpustack_session=session-0815", key=None))
            await running.at_rest()
        assert log.read_text().count("\n") > 10
    texts = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    texts |= {
        f"{record.name} {record.levelname}": f"{record.getMessage()} {record.args} {record.exc_text}".encode()
        for record in caplog.records
    }
    for where, text in texts.items():
        assert not [secret for secret in secrets if secret.encode() in text], where


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((f"Authorization: Bearer {KEY}", "X-API-Key: sk-wrong"), 200),
        (("X-API-Key: sk-wrong", f"Authorization: Bearer {KEY}"), 200),
        (("Authorization: Bearer sk-wrong", f"X-API-Key: {KEY}"), 401),
        ((f"X-API-Key: {KEY}", "Authorization: Bearer sk-wrong"), 401),
        (("Authorization: Basic abc", f"X-API-Key: {KEY}"), 200),
        ((f"X-API-Key: {KEY}",), 200),
        ((f"Authorization: bearer   {KEY} ",), 200),
        ((f"Authorization: Bearer {KEY}, Bearer {KEY}",), 401),
        ((f"Authorization: {KEY}",), 401),
        ((f"Proxy-Authorization: Bearer {KEY}",), 401),
        (("Authorization: Bearer sk-wrong", "Authorization: Bearer sk-wrong"), 400),
    ],
)
async def test_of_several_credentials_the_bearer_counts(
    running: Running, lines: tuple[str, ...], status: int
) -> None:
    running.apply(a_route())
    assert status_of(await running.say(a_request("GET /v1/models", *lines, key=None))) == status


@pytest.mark.parametrize(
    ("name", "turned"),
    [
        ("Authorization: Bearer ", False),
        ("Authorization: Bearer ", True),
        ("X-API-Key: ", False),
        ("X-API-Key: ", True),
    ],
)
async def test_two_credentials_of_one_kind_are_not_taken_for_either(
    running: Running, name: str, turned: bool
) -> None:
    """Whoever looks at the other one, a log or a proxy before us, sees somebody else."""
    running.apply(a_route())
    lines = [f"{name}{KEY}", f"{name}sk-other"]
    answer = await running.say(a_request("GET /v1/models", *(reversed(lines) if turned else lines), key=None))
    assert status_of(answer) in (400, 401)


async def test_no_credential_of_a_client_reaches_an_engine(running: Running) -> None:
    lines = (
        f"X-API-Key: {KEY}",
        f"Api-Key: {KEY}",
        f"Cookie: gpustack_session={KEY}; other=1",
        f"Proxy-Authorization: Bearer {KEY}",
        "Connection: keep-alive, x-secret",
        "X-Secret: one",
        "TE: trailers",
    )
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port), a_target(2, port, credential="door")))
        for first in (
            "POST /v1/chat/completions",
            "POST /model/proxy/tiny/x",
            "POST /model/proxy/tiny/v1/chat/completions",
        ):
            for _ in range(4):
                assert status_of(await running.say(a_request(first, *lines, body=ASKED))) == 200
    assert len(heads) == 12
    for head in heads:
        assert KEY.encode() not in head
        assert fields_of(head, "cookie") == fields_of(head, "x-secret") == fields_of(head, "te") == []
        assert fields_of(head, "authorization") in ([], [b"Bearer door"])


# Smuggling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/x%0d%0aHost:%20evil",
        "/x%0D%0A%0D%0AGET%20/evil",
        "/x%00y",
        "/x%20HTTP/1.1",
        "//evil.example/x",
        "/http://evil.example/x",
        "/x;a=b/y",
        "/%2e%2e%2f%2e%2e/x",
        "/x%23y",
        "/a//b",
        "/",
    ],
)
async def test_a_path_behind_the_proxy_reaches_the_engine_to_the_byte_or_not_at_all(
    running: Running, path: str
) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port, path_prefix="/instances/4")))
        answer = await running.say(a_request(f"GET /model/proxy/tiny{path}"))
        if status_of(answer) == 400:
            assert heads == []
            return
        assert status_of(answer) == 200
    (head,) = heads
    assert head.startswith(
        b"GET /instances/4" + path.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % port
    )
    assert fields_of(head, "host") == [b"127.0.0.1:%d" % port]


@pytest.mark.parametrize("path", ["/../5/x", "/..", "/a/../../5/x", "/%2e%2e/5/x", "/.%2E/5/x", "/./x"])
async def test_a_path_behind_the_proxy_leads_nowhere_else(running: Running, path: str) -> None:
    """Whoever stands between the gateway and the engine may resolve the dots, and end at another instance."""
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port, path_prefix="/instances/4")))
        assert status_of(await running.say(a_request(f"GET /model/proxy/tiny{path}"))) in (400, 404)
    assert heads == []


@pytest.mark.parametrize(
    "first",
    [
        "GET /model/proxy/tiny/x y",
        "GET /model/proxy/tiny/x\r y",
        "GET /model/proxy/tiny/x#fragment",
        "GET /model/proxy/tiny/\x80",
        "GET ftp://a/model/proxy/tiny/x",
        "GET http://u:p@a/model/proxy/tiny/x",
        "GET model/proxy/tiny/x",
        "FOO /model/proxy/tiny/x",
        "GET /model/proxy/tiny/x\r\nX-Folded: a\r\n b:",
    ],
)
async def test_what_is_no_plain_target_reaches_no_engine(running: Running, first: str) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        assert status_of(await running.say(a_request(first))) == 400
    assert heads == []


async def test_a_whole_address_names_no_other_host_for_the_engine(running: Running) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        answer = await running.say(a_request("GET http://evil.example/model/proxy/tiny/x?y"))
        assert status_of(answer) == 200
    assert heads[0].startswith(b"GET /x?y HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % port)
    assert b"evil" not in heads[0]


@pytest.mark.parametrize(
    "query", ["a=b&c=d", "", "?", "a=%0d%0aX:%20y&b=%2F..%2F", "a[]=1&&=;&b=+%20'\"", "a=b?c=d"]
)
async def test_a_query_reaches_engine_and_server_exactly_as_it_was_sent(tmp_path: Path, query: str) -> None:
    async with a_recorder() as (port, heads), a_recorder() as (server, asked):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            for path in ("/model/proxy/tiny/x", "/v2/models"):
                assert status_of(await running.say(a_request(f"GET {path}?{query}"))) == 200
            assert (
                status_of(await running.say(a_request(f"POST /v1/chat/completions?{query}", body=ASKED)))
                == 200
            )
    mark = "?" if query else ""
    assert heads[0].startswith(f"GET /x{mark}{query} HTTP/1.1\r\n".encode())
    assert heads[1].startswith(f"POST /v1/chat/completions{mark}{query} HTTP/1.1\r\n".encode())
    assert asked[0].startswith(f"GET /v2/models{mark}{query} HTTP/1.1\r\n".encode())


async def test_a_body_that_is_no_request_hides_none(running: Running) -> None:
    """One connection, a body with a request in it, and the next request: two are asked, and no third."""
    hidden = b"POST /model/proxy/tiny/evil HTTP/1.1\r\nHost: a\r\n\r\n"
    body = json.dumps({**CHAT, "pad": hidden.decode()}).encode()
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        first = a_request(body=body).replace(b"Connection: close\r\n", b"")
        answer = await running.say(first + a_request(body=ASKED))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert [head.split(b" ")[1] for head in heads] == [b"/v1/chat/completions"] * 2


# Who says where a request comes from ----------------------------------------------------------------------

FORGED = (
    "X-GPUStack-Gateway: forged",
    f"X-Gpustack-Gateway: {MARK.decode()[:-1]}",
    "X-Forwarded-For: 10.0.0.1",
    "X_Forwarded_For: 10.0.0.1",
    "X-Forwarded-Proto: https",
    "Forwarded: for=10.0.0.1",
    "X-Real-IP: 10.0.0.1",
    "Connection: x-gpustack-gateway, x-forwarded-for, host, content-length",
)


async def test_the_server_learns_where_a_request_comes_from_by_us_alone(tmp_path: Path) -> None:
    async with a_recorder() as (server, asked):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route())
            for first, body in (("GET /v2/models", b""), ("POST /v2/models", b"{}"), ("HEAD /", b"")):
                assert status_of(await running.say(a_request(first, *FORGED, body=body))) == 200
    assert len(asked) == 3
    for head in asked:
        assert fields_of(head, "x-gpustack-gateway") == [MARK]
        assert fields_of(head, "x-forwarded-for") == [b"127.0.0.1"]
        assert fields_of(head, "x-forwarded-proto") == [b"http"]
        assert fields_of(head, "forwarded") == fields_of(head, "x-real-ip") == []
        assert fields_of(head, "host") == [b"gateway"]


async def test_an_underscore_makes_no_mark_either(tmp_path: Path) -> None:
    async with a_recorder() as (server, asked):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route())
            await running.say(a_request("GET /v2/models", "X_GPUStack_Gateway: forged"))
    assert fields_of(asked[0], "x-gpustack-gateway") == [MARK]


async def test_an_engine_learns_nothing_of_where_a_request_is_said_to_come_from(running: Running) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        assert (
            status_of(await running.say(a_request("POST /v1/chat/completions", *FORGED, body=ASKED))) == 200
        )
    (head,) = heads
    for name in ("x-forwarded-for", "x-forwarded-proto", "forwarded", "x-real-ip", "x-gpustack-gateway"):
        assert fields_of(head, name) == [], name
    assert fields_of(head, "content-length") == [b"%d" % len(ASKED)]


# Methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ("PUT /v1/chat/completions", 405),
        ("DELETE /v1/chat/completions", 405),
        ("GET /v1/chat/completions", 405),
        ("PATCH /v1/models", 405),
        ("TRACE /v1/models", 405),
        ("FOO /v1/chat/completions", 400),
        ("post /v1/chat/completions", 400),
        ("POSTX /v1/chat/completions", 400),
        ("CONNECT gateway:443", 501),
        ("OPTIONS /v1/chat/completions", 405),
    ],
)
async def test_a_method_that_a_path_does_not_take_reaches_no_engine(
    running: Running, first: str, status: int
) -> None:
    async with a_recorder() as (port, heads):
        running.apply(a_route(a_target(1, port)))
        answer = await running.say(a_request(first))
        assert status_of(answer) == status
        assert bool(fields_of(answer.partition(b"\r\n\r\n")[0], "allow")) is (status == 405)
    assert heads == []


async def test_head_gets_a_head_and_nothing_after_it(tmp_path: Path) -> None:
    async with a_recorder(b'{"long": "answer"}') as (port, heads), a_recorder() as (server, _):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            for path, status in (
                ("/v1/models", 200),
                ("/v1/models/tiny", 200),
                ("/v1/models/other", 404),
                ("/model/proxy/tiny/health", 200),
                ("/v1/chat/completions", 405),
                ("/v2/models", 200),
            ):
                head, _, body = (await running.say(a_request(f"HEAD {path}"))).partition(b"\r\n\r\n")
                assert (status_of(head), body) == (status, b""), path
                assert int(fields_of(head, "content-length")[0]) > 0, path
    assert heads[0].startswith(b"HEAD /health HTTP/1.1\r\n")


async def test_who_is_signed_in_goes_to_the_server_and_the_cookie_to_no_engine(tmp_path: Path) -> None:
    cookie = "Cookie: gpustack_session=abc"
    async with a_recorder() as (port, heads), a_recorder() as (server, asked):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            assert (
                status_of(
                    await running.say(a_request("POST /v1/chat/completions", cookie, body=ASKED, key=None))
                )
                == 200
            )
            assert (len(asked), len(heads)) == (1, 0)
            assert fields_of(asked[0], "cookie") == [b"gpustack_session=abc"]
            assert (
                status_of(await running.say(a_request("POST /v1/chat/completions", cookie, body=ASKED)))
                == 200
            )
            assert (len(asked), len(heads)) == (1, 1)
            # A key that is wrong is not made right by a cookie.
            wrong = a_request("POST /v1/chat/completions", cookie, body=ASKED, key="sk-wrong")
            assert status_of(await running.say(wrong)) == 401
    assert fields_of(heads[0], "cookie") == []


async def test_a_session_in_the_table_needs_no_server_and_is_good_for_our_own_pages_only(
    tmp_path: Path,
) -> None:
    """A browser sends cookies along for pages of any site; whatever is not plain goes to the server, which refuses."""

    def asked_with(*lines: str, key: str | None = None) -> bytes:
        return a_request("POST /v1/chat/completions", *lines, body=ASKED, key=key)

    here, over = f"{COOKIE}=here", f"{COOKIE}=over"
    async with a_recorder() as (port, heads), a_recorder() as (server, passed_on):
        async with a_gateway(tmp_path, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, port)))
            people = {
                of_session(digest("here")): Principal(user_id=2, username="bob"),
                of_session(digest("over")): Principal(user_id=2, username="bob", expires_at=1.0),
            }
            running.gateway.apply(
                RoutingTable(version=2, routes=running.routes, principals=running.principals | people)
            )
            host = fields_of(asked_with(here), "host")[0].decode()
            for lines in (
                [f"Cookie: {here}"],
                [f"Cookie: theme=dark; {here}; other={here}"],
                [f"Cookie: {here}", f"Origin: http://{host}", "Sec-Fetch-Site: same-origin"],
            ):
                assert status_of(await running.say(asked_with(*lines))) == 200
            assert (len(heads), len(passed_on)) == (3, 0)
            record = (await running.records())[0]
            assert (record.user_id, record.key_id) == (2, None)
            for lines in (
                [f"Cookie: {over}"],
                [f"Cookie: {here}; {over}"],
                [f"Cookie: {here}", "Origin: https://elsewhere.example"],
                [f"Cookie: {here}", "Origin: null"],
                [f"Cookie: {here}", "Origin: http://[1"],
                [f"Cookie: {here}", "Sec-Fetch-Site: cross-site"],
            ):
                await running.say(asked_with(*lines))
            assert (len(heads), len(passed_on)) == (3, 6)
            # A session is no key, and a key no session.
            assert status_of(await running.say(asked_with(key="here"))) == 401
            await running.say(asked_with(f"Cookie: {COOKIE}={KEY}"))
            assert (len(heads), len(passed_on)) == (3, 7)
    assert all(fields_of(head, "cookie") == [] for head in heads)


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
