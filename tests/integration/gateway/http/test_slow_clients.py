"""Clients that take their time, on purpose or not."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE

import psutil
import pytest

from .conftest import eventually, get, request_of

PIECE = b"x" * 65536


async def test_slowloris_is_ended_with_one_answer_and_others_are_served(lab):
    gateway = await lab.gateway(head_seconds=0.3)
    clients = [await lab.client(gateway) for _ in range(50)]
    for client in clients:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")

    async def trickle(client) -> int:
        async def drip() -> None:
            while True:
                await client.send(b"X: y\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        status, _ = await client.answer()
        dripping.cancel()
        return status

    answers = asyncio.gather(*map(trickle, clients))
    await lab.undisturbed(gateway)
    assert set(await answers) == {408}


async def test_a_body_that_hardly_comes_is_ended(lab):
    gateway = await lab.gateway(head_seconds=0.05, body_seconds=0.1, body_rate=1_000_000)
    client = await lab.client(gateway)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx")
    assert (await client.answer())[0] == 408
    assert gateway.server.buffered == 0


async def test_unused_connections_end_without_a_word(lab):
    gateway = await lab.gateway(keep_alive_seconds=0.1)
    fresh, used = await lab.client(gateway), await lab.client(gateway)
    await used.send(get(b"/x"))
    assert (await used.answer())[0] == 200
    await fresh.gone()
    await used.gone()


async def test_an_answer_may_take_longer_than_an_unused_connection(lab):
    gateway = await lab.gateway(keep_alive_seconds=0.05, head_seconds=0.05)
    client = await lab.client(gateway)
    await client.send(get(b"/later"))
    await asyncio.sleep(0.2)
    gateway.waiting[0].answer(200, [], b"late")
    assert await client.answer() == (200, b"late")


async def test_many_unused_connections_disturb_nobody(lab):
    gateway = await lab.gateway()
    for _ in range(300):
        await lab.client(gateway)
    await eventually(lambda: len(gateway.server.connections) == 300)
    await lab.undisturbed(gateway)
    assert len(gateway.server.connections) <= 301


async def test_a_client_that_does_not_read_stops_the_engine_and_not_the_others(lab):
    sent = 0

    async def engine(client) -> None:
        nonlocal sent
        await request_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PIECE) * 2000))
        for _ in range(2000):
            await client.send(PIECE)
            sent += len(PIECE)

    gateway = await lab.gateway(engine)
    slow = await lab.client(gateway)
    await slow.send(get(b"/engine"))
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < len(PIECE) * 1000, "the engine is made to wait"
    (connection,) = gateway.server.connections
    assert connection._transport.get_write_buffer_size() < 1 << 20
    await lab.undisturbed(gateway)
    status, body = await slow.answer()
    assert (status, len(body)) == (200, len(PIECE) * 2000)


async def test_a_client_that_never_reads_is_given_up_and_the_engine_hears_of_it(lab):
    ended = asyncio.Event()

    async def engine(client) -> None:
        await request_of(client)
        await client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while not client.writer.transport.is_closing():
                await client.send(b"10000\r\n" + PIECE + b"\r\n")
        finally:
            ended.set()

    gateway = await lab.gateway(engine, write_seconds=0.2)
    slow = await lab.client(gateway)
    await slow.send(get(b"/engine"))
    async with asyncio.timeout(20):
        await ended.wait()
    await eventually(lambda: not gateway.server.connections)
    assert gateway.server.timeouts == 1
    assert not gateway.upstream.active


async def test_who_pipelines_without_reading_is_not_buffered_for(lab):
    gateway = await lab.gateway(write_seconds=0.3, pipelined=1000)
    client = await lab.client(gateway, limit=1024)

    async def flood() -> None:
        while not client.writer.transport.is_closing():
            await client.send(get(b"/x" + b"y" * 4000) * 8)

    flooding = asyncio.create_task(flood())
    worst = 0
    async with asyncio.timeout(20):
        while gateway.server.connections or not worst:
            for connection in gateway.server.connections:
                worst = max(worst, connection._transport.get_write_buffer_size() + connection._held_size)
            await asyncio.sleep(0.005)
    flooding.cancel()
    assert 0 < worst < 1 << 20


_TEN_THOUSAND = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(10_000)]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
async def test_ten_thousand_unused_connections(lab):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 11_000:
        pytest.skip(f"a process may open only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (11_000, hard))
    try:
        gateway = await lab.gateway(sweep_seconds=0.5)
        before = psutil.Process().memory_info().rss
        clients = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _TEN_THOUSAND, str(gateway.port), stdin=PIPE, stdout=PIPE
        )
        try:
            async with asyncio.timeout(120):
                await clients.stdout.readline()
                while len(gateway.server.connections) < 10_000:
                    await asyncio.sleep(0.01)
            await lab.undisturbed(gateway)
            assert psutil.Process().memory_info().rss - before < 200 << 20
        finally:
            clients.kill()
            await clients.wait()
        await eventually(lambda: not gateway.server.connections)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
