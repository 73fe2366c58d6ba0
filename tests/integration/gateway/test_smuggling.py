"""What a request is, and where it comes from, is told by nobody but the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpustack.app.sharing import limits_of
from gpustack.settings.model import Settings
from support.gateway import (
    ASKED,
    CHAT,
    MARK,
    Running,
    a_gateway,
    a_recorder,
    a_request,
    a_route,
    a_target,
    an_engine,
    fields_of,
    status_of,
)

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


async def test_a_proxy_that_was_named_is_believed_on_where_a_request_comes_from(tmp_path: Path) -> None:
    limits = limits_of(Settings(data_dir=tmp_path, trusted_proxies=("127.0.0.1",)).model_dump())
    said = ("X-Forwarded-For: 198.51.100.1, 203.0.113.9", "X-Forwarded-Proto: https")
    log = tmp_path / "access.log"
    async with a_recorder() as (server, asked), a_recorder() as (engine, _):
        async with a_gateway(tmp_path, limits=limits, access_log=log, server_at=(server, MARK)) as running:
            running.apply(a_route(a_target(1, engine)))
            assert status_of(await running.say(a_request("GET /v2/models", *said))) == 200
            assert (
                status_of(await running.say(a_request("POST /v1/chat/completions", *said, body=ASKED))) == 200
            )
    assert fields_of(asked[0], "x-forwarded-for") == [b"203.0.113.9"]
    assert fields_of(asked[0], "x-forwarded-proto") == [b"https"]
    assert "203.0.113.9" in log.read_text()


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


async def test_an_engine_that_asks_for_unbuffered_streams_is_not_echoed(running: Running) -> None:
    body = b"data: [DONE]\n\n"
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-accel-buffering: no\r\ncontent-length: %d\r\n\r\n%b"
    async with an_engine(stream % (len(body), body)) as port:
        running.apply(a_route(a_target(1, port)))
        asked = json.dumps({**CHAT, "stream": True}).encode()
        head = (await running.say(a_request(body=asked))).partition(b"\r\n\r\n")[0]
    assert fields_of(head, "x-accel-buffering") == [b"no"]
