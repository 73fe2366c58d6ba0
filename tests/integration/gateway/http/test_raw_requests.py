"""Bytes on a socket: one clear answer each, and nobody else notices."""

from __future__ import annotations

import asyncio
import json

import pytest

from support.http_bytes import ACCEPTED, HIDDEN, REFUSED

from .conftest import get, post

# Several tables of small exchanges share one server each, so that the whole takes a second.


async def test_what_is_refused_gets_one_answer_and_the_end(lab):
    gateway = await lab.gateway(linger_seconds=0.1)

    async def refuse(name: str) -> str:
        data, status = REFUSED[name]
        client = await lab.client(gateway)
        await client.send(data + HIDDEN)
        found, _ = await client.answer()
        await client.gone()
        return "" if found == status else f"{name}: {found} instead of {status}"

    assert not [wrong for wrong in await asyncio.gather(*map(refuse, REFUSED)) if wrong]
    assert gateway.handled == []
    await lab.undisturbed(gateway)
    assert gateway.server.buffered == 0


async def test_what_is_refused_slowly_gets_one_answer_too(lab):
    gateway = await lab.gateway(linger_seconds=1.0)

    async def refuse(name: str) -> str:
        data, status = REFUSED[name]
        client = await lab.client(gateway)
        for at in range(0, len(data), 9):
            await client.send(data[at : at + 9])
            await asyncio.sleep(0)
        found, _ = await client.answer()
        await client.gone()
        return "" if found == status else f"{name}: {found} instead of {status}"

    assert not [wrong for wrong in await asyncio.gather(*map(refuse, REFUSED)) if wrong]
    await lab.undisturbed(gateway)


async def test_what_is_valid_gets_its_answers(lab):
    gateway = await lab.gateway()
    for data, bodies in ACCEPTED.values():
        client = await lab.client(gateway)
        await client.send(data)
        for body in bodies:
            status, said = await client.answer()
            assert (status, json.loads(said)["size"]) == (200, len(body))


async def test_a_refused_request_and_the_next_on_one_connection(lab):
    gateway = await lab.gateway()
    client = await lab.client(gateway)
    await client.send(post(b"/refused", b"x" * 1000) + get(b"/next"))
    assert (await client.answer())[0] == 401
    assert (await client.answer())[0] == 200


async def test_an_error_of_head_has_no_body(lab):
    gateway = await lab.gateway()
    for data, status in (
        (b"HEAD /refused HTTP/1.1\r\nHost: a\r\n\r\n", 401),
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
    ):
        client = await lab.client(gateway)
        await client.send(data)
        found, fields = await client.head()
        assert found == status
        assert int(fields["content-length"]) > 0
        client.writer.write_eof()
        await client.gone()


async def test_a_word_before_the_body_and_a_refusal_instead(lab):
    gateway = await lab.gateway(linger_seconds=0.1)
    client = await lab.client(gateway)
    body = post(b"/x", b"hello", b"Expect: 100-continue")
    await client.send(body[:-5])
    assert await client.head() == (100, {})
    await client.send(b"hello")
    assert (await client.answer())[0] == 200
    await client.send(post(b"/refused", b"hello", b"Expect: 100-continue")[:-5])
    assert (await client.answer())[0] == 401
    await client.gone()


async def test_pipelined_requests_are_answered_in_order_also_when_the_first_takes_long(lab):
    gateway = await lab.gateway()
    client = await lab.client(gateway)
    await client.send(get(b"/later") + post(b"/2", b"x") + get(b"/refused"))
    await client.send(get(b"/4"))
    while not gateway.waiting:
        await asyncio.sleep(0.005)
    assert gateway.handled == [b"/later"]
    gateway.waiting[0].answer(200, [], b"first")
    assert await client.answer() == (200, b"first")
    assert json.loads((await client.answer())[1])["path"] == "/2"
    assert (await client.answer())[0] == 401
    assert json.loads((await client.answer())[1])["path"] == "/4"


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused_while_it_is_sent(lab, announced):
    gateway = await lab.gateway(body_bytes=1 << 20, linger_seconds=0.2)
    client = await lab.client(gateway)
    framing = b"Content-Length: 33554432" if announced else b"Transfer-Encoding: chunked"
    await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")

    async def flood() -> None:
        piece = b"x" * 65536 if announced else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(256):
            await client.send(piece)

    sending = asyncio.create_task(flood())
    status, body = await client.answer()
    assert status == 413
    assert b"larger than 1.0 MiB" in body or b"larger than" in body
    sending.cancel()
    await lab.undisturbed(gateway)
    assert gateway.server.buffered == 0


async def test_all_bodies_together_are_bounded(lab):
    gateway = await lab.gateway(all_bodies_bytes=1 << 20)
    first = await lab.client(gateway)
    await first.send(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"x" * 800_000)
    while gateway.server.buffered < 800_000:
        await asyncio.sleep(0.005)
    second = await lab.client(gateway)
    await second.send(post(b"/x", b"x" * 300_000))
    status, fields = await second.head()
    assert (status, fields["retry-after"]) == (503, "5")
    await lab.undisturbed(gateway)
    await first.send(b"x" * 100_000)
    assert (await first.answer())[0] == 200
    assert gateway.server.buffered == 0


async def test_floods_of_headers_are_refused_and_nobody_is_kept_waiting(lab):
    gateway = await lab.gateway(linger_seconds=0.1)
    start = b"GET / HTTP/1.1\r\nHost: a\r\n"
    for flood in (b"X: " + b"y" * 300_000, b"a:\r\n" * 75_000, (b"X: " + b"y" * 4000 + b"\r\n") * 75):
        client = await lab.client(gateway)
        await client.send(start + flood)
        assert (await client.answer())[0] == 431
        await lab.undisturbed(gateway)


async def test_ipv6(lab):
    try:
        gateway = await lab.gateway(host="::1")
        client = await lab.client(gateway, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6 on loopback")
    await client.send(get(b"/x"))
    assert json.loads((await client.answer())[1])["peer"] == "::1"


async def test_draining_lets_answers_end_and_no_connection_stay(lab):
    gateway = await lab.gateway()
    idle, busy = await lab.client(gateway), await lab.client(gateway)
    await idle.send(get(b"/x"))
    await idle.answer()
    await busy.send(get(b"/later"))
    while not gateway.waiting:
        await asyncio.sleep(0.005)
    draining = asyncio.create_task(gateway.server.drain(10.0))
    await idle.gone()
    assert not draining.done()
    gateway.waiting[0].answer(200, [], b"at last")
    status, fields = await busy.head()
    assert (status, fields["connection"]) == (200, "close")
    assert await busy.rest() == b"at last"
    await draining
    assert not gateway.server.connections


async def test_draining_does_not_wait_for_ever(lab):
    gateway = await lab.gateway()
    busy = await lab.client(gateway)
    await busy.send(get(b"/later"))
    while not gateway.waiting:
        await asyncio.sleep(0.005)
    await gateway.server.drain(0.05)
    await busy.gone()
    assert gateway.waiting[0].gone
