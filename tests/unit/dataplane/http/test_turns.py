"""Whoever sends much in a row lets others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gpustack.dataplane.http import Exchange, HttpServer, Upstream
from gpustack.dataplane.http.engine import EngineConnection
from gpustack.dataplane.http.limits import FULL_READ
from gpustack.plugin.routing import Timeouts

from .conftest import Recorder, Transport
from .test_reading_answers import ADDRESS, Taken

FULL = b"x" * FULL_READ
SIZE = 3 * FULL_READ
REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE


async def turn() -> None:
    """Let the loop call what waits."""
    await asyncio.sleep(0)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    upstream.start()
    yield upstream
    upstream.close()


async def test_a_client_with_a_large_body_is_read_once_in_a_turn() -> None:
    service = Recorder()
    server = HttpServer(service)
    server.start()
    client, transport = server.protocol(), Transport()
    client.connection_made(transport)
    client.data_received(REQUEST)
    assert not transport.paused
    for _ in range(3):
        client.data_received(FULL)
        assert transport.paused
        await turn()
        assert not transport.paused
    assert [request.body for request, _ in service.handled] == [3 * FULL]
    server.close()


async def test_a_client_that_is_held_back_stays_so_after_its_turn() -> None:
    server = HttpServer(Recorder())
    server.start()
    client, transport = server.protocol(), Transport()
    client.connection_made(transport)
    client.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    # Its request is being answered, and what comes meanwhile waits for the end.
    while not client._reading_paused:
        client.data_received(FULL)
    await turn()
    assert transport.paused
    server.close()


async def test_a_client_that_has_left_is_not_read_on() -> None:
    server = HttpServer(Recorder())
    server.start()
    client, transport = server.protocol(), Transport()
    client.connection_made(transport)
    client.data_received(REQUEST)
    client.data_received(FULL)
    client.connection_lost(None)
    await turn()
    assert transport.paused
    server.close()


async def test_an_engine_with_a_large_answer_is_read_once_in_a_turn(upstream: Upstream) -> None:
    connection, transport, sink = EngineConnection(upstream, ADDRESS), Transport(), Taken()
    connection.connection_made(transport)
    exchange = Exchange(upstream, ADDRESS, b"GET / HTTP/1.1\r\n\r\n", b"", sink, Timeouts())
    upstream._send(connection, exchange)
    connection.data_received(ANSWER)
    for _ in range(2):
        connection.data_received(FULL)
        assert transport.paused
        await turn()
        assert not transport.paused
    connection.data_received(FULL)
    # The next answer on this connection is heard at once.
    assert sink.whole
    assert not transport.paused
    assert sink.body == 3 * FULL


async def test_an_engine_that_a_slow_client_lets_wait_does_so_after_its_turn(upstream: Upstream) -> None:
    connection, transport, sink = EngineConnection(upstream, ADDRESS), Transport(), Taken()
    connection.connection_made(transport)
    exchange = Exchange(upstream, ADDRESS, b"GET / HTTP/1.1\r\n\r\n", b"", sink, Timeouts())
    upstream._send(connection, exchange)
    connection.data_received(ANSWER)
    connection.data_received(FULL)
    exchange.pause()
    await turn()
    assert transport.paused
    exchange.resume()
    assert not transport.paused
