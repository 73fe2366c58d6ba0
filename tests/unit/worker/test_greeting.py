"""Members ask each other before they start: the line names the pair that cannot work together, and why."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from gpustack.worker.groups import greeting
from gpustack.worker.groups.greeting import Card, MembersApart, Peer, answering, check
from gpustack.worker.ports import Lease, PortPool
from support.running import free_ports

HERE = "127.0.0.1"
CARD = Card(instance=7, attempt=2, number=0, worker="red", engine="vllm", version="0.32.0", gpustack="1.0.0")
BLUE = replace(CARD, number=1, worker="blue")


@contextlib.asynccontextmanager
async def another(card: Card = BLUE, ports: int = 2) -> AsyncIterator[tuple[Peer, list[Lease]]]:
    pool = PortPool(free_ports(ports), host="")
    leases = [pool.take("blue") for _ in range(ports)]
    try:
        async with answering(card, leases):
            yield Peer(1, "blue", HERE, tuple(each.port for each in leases)), leases
    finally:
        for lease in leases:
            lease.free()


async def trouble(card: Card = BLUE) -> str:
    async with another(card) as (peer, _):
        with pytest.raises(MembersApart) as caught:
            await check(CARD, [peer])
    return str(caught.value)


async def test_members_that_are_alike_find_each_other() -> None:
    async with another() as (peer, _):
        await check(CARD, [peer])


async def test_an_upgrade_of_one_after_the_other_hinders_nobody() -> None:
    async with another(replace(BLUE, gpustack="1.1.3")) as (peer, _):
        await check(CARD, [peer])


@pytest.mark.parametrize(
    "asks",
    [b"GET / HTTP/1.1", b"{}", b"[]", b'{"instance": 7, "attempt": 1}', b'{"instance": 8, "attempt": 2}'],
)
async def test_strangers_learn_nothing(asks: bytes) -> None:
    async with another() as (peer, _):
        reader, writer = await asyncio.open_connection(HERE, peer.ports[0])
        writer.write(asks + b"\n")
        said = await reader.read(4096)
        writer.close()
        await writer.wait_closed()

    assert b"blue" not in said
    assert b"0.32.0" not in said


async def test_the_ports_can_be_opened_right_after_that() -> None:
    async with another() as (peer, leases):
        await check(CARD, [peer])
    assert not any(each._held for each in leases)
    for port in peer.ports:
        with socket.socket() as sock:
            sock.bind(("", port))  # as an engine does, which does not reuse addresses


async def test_a_port_that_nobody_answers_on_is_named() -> None:
    [port] = free_ports(1)
    with pytest.raises(MembersApart) as caught:
        await check(CARD, [Peer(1, "blue", HERE, (port,))])

    assert str(caught.value) == (
        f"worker red cannot reach worker blue at {HERE}:{port} (connection refused); open "
        "--distributed-worker-port-range between them, and see that --advertise-address is right"
    )


async def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "_PATIENCE", 0.1)
    with socket.create_server((HERE, 0)) as sock:
        with pytest.raises(MembersApart, match=r"\(no answer within 0 s\)"):
            await check(CARD, [Peer(1, "blue", HERE, (sock.getsockname()[1],))])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "0.31.0"}, "have different versions of vllm: 0.32.0 and 0.31.0"),
        ({"engine": "sglang"}, "have different engines, vllm and sglang"),
        ({"gpustack": "1.2.0"}, "have GPUStack 1.0.0 and 1.2.0, which are too far apart"),
        ({"attempt": 1}, "or another attempt to start it, answers at"),
        ({"instance": 8}, "another instance, or another"),
        ({"number": 2}, "another instance, or another"),
    ],
)
async def test_what_differs_is_told(other: dict[str, Any], said: str) -> None:
    line = await trouble(replace(BLUE, **other))

    assert line.startswith("worker red and worker blue")
    assert said in line


async def test_clocks_that_are_far_apart_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = greeting._ask

    async def late(*args: Any) -> dict[str, Any]:
        return {**await ask(*args), "clock": time.time() + 600}

    monkeypatch.setattr(greeting, "_ask", late)

    assert await trouble() == (
        "the clocks of worker red and worker blue differ by 600 s; have both set their time by NTP"
    )
