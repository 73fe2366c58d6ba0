"""Engines that do what engines should not."""

from __future__ import annotations

import asyncio

import pytest

from gpustack.dataplane.http import Stage
from gpustack.plugin.routing import Timeouts
from support.http_bytes import BAD_ANSWERS, GOOD_ANSWERS

from .conftest import Client, eventually, get, post, request_of


def saying(*pieces: bytes, then_wait: bool = True):
    """An engine that answers each request with the same bytes."""

    async def engine(client: Client) -> None:
        while True:
            await request_of(client)
            for piece in pieces:
                await client.send(piece)
                await asyncio.sleep(0)
            if not then_wait:
                return

    return engine


async def test_what_is_no_answer_becomes_one_clear_error(lab):
    gateway = await lab.gateway()
    for name, data in BAD_ANSWERS.items():
        gateway.engine = await lab.engine(saying(data))
        client = await lab.client(gateway)
        await client.send(get(b"/engine"))
        status, _ = await client.answer()
        assert status == 502, name
        await client.send(get(b"/next"))
        assert (await client.answer())[0] == 200, "the client's connection is whole"
    assert all(failure.started for failure in gateway.failures)
    assert not gateway.upstream.active


async def test_what_is_an_answer_passes(lab):
    gateway = await lab.gateway()
    for name, (data, status, body, _) in GOOD_ANSWERS.items():
        if status in {204, 304}:
            continue
        gateway.engine = await lab.engine(saying(data))
        client = await lab.client(gateway)
        for _ in range(2):
            await client.send(get(b"/engine"))
            assert await client.answer() == (status, body), name


@pytest.mark.parametrize(
    "half",
    [
        b"Content-Length: 9\r\n\r\nhel",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    ],
)
async def test_half_an_answer_is_seen_to_be_half(lab, half):
    gateway = await lab.gateway(saying(b"HTTP/1.1 200 OK\r\n" + half, then_wait=False))
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    found = await client.rest()
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not found.endswith(b"0\r\n\r\n")
    await lab.undisturbed(gateway)


async def test_half_a_head_is_an_error(lab):
    gateway = await lab.gateway(saying(b"HTTP/1.1 200 OK\r\nConte", then_wait=False))
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    assert (await client.answer())[0] == 502


async def test_an_answer_that_ends_with_the_connection_is_whole(lab):
    gateway = await lab.gateway(saying(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", then_wait=False))
    client = await lab.client(gateway)
    for _ in range(2):
        await client.send(get(b"/engine"))
        assert await client.answer() == (200, b"hello")


async def test_a_head_without_end_is_an_error_and_takes_no_memory(lab):
    async def engine(client: Client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\n")
        while not client.writer.transport.is_closing():
            await client.send(b"X: " + b"y" * 1000 + b"\r\n")

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    assert await client.answer() == (502, b"sent an endless head")
    await lab.undisturbed(gateway)


async def test_an_engine_that_is_not_there(lab):
    gateway = await lab.gateway()
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    assert await client.answer() == (502, b"cannot be reached")
    assert [(each.stage, each.started) for each in gateway.failures] == [(Stage.CONNECT, False)]


async def test_an_engine_that_does_not_answer(lab):
    async def engine(client: Client) -> None:
        await client.rest()

    gateway = await lab.gateway(engine, timeouts=Timeouts(first_byte=0.1))
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    assert await client.answer() == (504, b"did not answer in time")


async def test_an_engine_that_falls_silent(lab):
    async def engine(client: Client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await client.rest()

    gateway = await lab.gateway(engine, timeouts=Timeouts(between=0.1))
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    found = await client.rest()
    assert found.endswith(b"1\r\nx\r\n")


async def test_an_engine_hears_at_once_that_the_client_has_left(lab):
    left = asyncio.Event()

    async def engine(client: Client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await client.rest()
        left.set()

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    await client.head()
    client.close()
    async with asyncio.timeout(20):
        await left.wait()
    await eventually(lambda: not gateway.upstream.active)


async def test_connections_are_used_again(lab):
    connections = 0

    async def engine(client: Client) -> None:
        nonlocal connections
        connections += 1
        await saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(client)

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    for _ in range(5):
        await client.send(post(b"/engine", b"hello"))
        assert await client.answer() == (200, b"ok")
    assert connections == 1


async def test_a_connection_that_the_engine_closed_meanwhile_costs_nothing(lab):
    bodies = []

    async def engine(client: Client) -> None:
        _, body = await request_of(client)
        bodies.append(body)
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if len(bodies) == 1:
            # As an engine does that reads the next request's first bytes too late.
            await client.reader.readexactly(1)

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    for body in (b"1", b"2", b"3"):
        await client.send(post(b"/engine", body))
        assert await client.answer() == (200, b"ok")
    assert bodies == [b"1", b"2", b"3"]
    assert gateway.upstream.stale == 1
    assert gateway.failures == []


async def test_a_fresh_connection_that_ends_is_not_tried_again(lab):
    connections = 0

    async def engine(client: Client) -> None:
        nonlocal connections
        connections += 1
        await request_of(client)

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(post(b"/engine", b"x"))
    assert (await client.answer())[0] == 502
    assert connections == 1
    assert gateway.failures[0].started


async def test_unused_connections_to_engines_are_closed_before_engines_do(lab):
    ended = asyncio.Event()

    async def engine(client: Client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await client.rest()
        ended.set()

    gateway = await lab.gateway(engine, idle_seconds=0.05)
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    await client.head()
    async with asyncio.timeout(20):
        await ended.wait()


async def test_connections_to_engines_that_are_gone_are_closed(lab):
    ended = asyncio.Event()

    async def engine(client: Client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        await client.rest()
        ended.set()

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    await client.head()
    gateway.upstream.forget_all_but([])
    async with asyncio.timeout(20):
        await ended.wait()


async def test_an_engine_gets_a_request_written_anew(lab):
    heads = []

    async def engine(client: Client) -> None:
        heads.append(await request_of(client))
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(
        b"POST /engine HTTP/1.1\r\nHost: elsewhere\r\nTransfer-Encoding: chunked\r\nX-Thing: y\r\nForwarded: for=x\r\n"
        b"Authorization: secret\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n5;ext\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"
    )
    assert (await client.answer())[0] == 200
    host = b"127.0.0.1:%d" % gateway.engine[1]
    expected = b"POST /v1/x HTTP/1.1\r\nhost: " + host + b"\r\nx-thing: y\r\ncontent-length: 5\r\n\r\n"
    assert heads == [(expected, b"hello")]


async def test_a_large_body_reaches_the_engine_whole(lab):
    sizes = []

    async def engine(client: Client) -> None:
        sizes.append(len((await request_of(client))[1]))
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    gateway = await lab.gateway(engine)
    client = await lab.client(gateway)
    await client.send(post(b"/engine", b"x" * (8 << 20)))
    assert (await client.answer())[0] == 200
    assert sizes == [8 << 20]
    await eventually(lambda: gateway.server.buffered == 0)


async def test_ipv6_engines(lab):
    try:
        address = await lab.engine(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "::1")
    except OSError:
        pytest.skip("this machine has no IPv6 on loopback")
    gateway = await lab.gateway()
    gateway.engine = address
    client = await lab.client(gateway)
    await client.send(get(b"/engine"))
    assert await client.answer() == (200, b"ok")


async def test_http_1_0_clients_get_chunks_undone(lab):
    gateway = await lab.gateway(saying(GOOD_ANSWERS["chunks"][0]))
    client = await lab.client(gateway)
    await client.send(b"GET /engine HTTP/1.0\r\n\r\n")
    _, fields = await client.head()
    assert "transfer-encoding" not in fields
    assert await client.rest() == b"hello!"
