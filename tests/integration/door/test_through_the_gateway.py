"""The gateway asks engines behind doors as it asks those on its own machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import pytest

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.door import instance_credential
from gpustack.dataplane.gateway import Gateway, Parts
from gpustack.dataplane.http import HttpServer, Upstream
from gpustack.plugin.routing import Principal, Route, RoutingTable, Target, digest
from support.door import TOKEN, RunningDoor, a_door
from support.fake_engine import FakeEngine, hangs_up_silently, says_ok, streams, thinks

REQUEST = {"model": "tiny", "prompt": "x"}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    with a_door(tmp_path_factory.mktemp("door")) as made:
        yield made


@contextlib.asynccontextmanager
async def behind(door: RunningDoor, engines: Sequence[FakeEngine]) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of a gateway with one target for each engine, all behind one door."""
    for number, engine in enumerate(engines, 1):
        door.engine_at(number, engine.port)
    targets = tuple(
        Target(
            instance_id=number,
            host="127.0.0.1",
            port=door.port,
            path_prefix=f"/instances/{number}",
            credential=instance_credential(TOKEN, number),
        )
        for number in range(1, len(engines) + 1)
    )
    loop = asyncio.get_running_loop()
    upstream = Upstream()
    gateway = Gateway(Parts(upstream=upstream, chooser=Chooser(), admission=Admission(loop.time, loop)))
    gateway.apply(
        RoutingTable(
            routes={"tiny": Route(name="tiny", created=0, targets=targets)},
            principals={digest("key"): Principal(user_id=1, username="u")},
        )
    )
    server = HttpServer(gateway)
    listener = await loop.create_server(server.protocol, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(
            base_url=url, headers={"authorization": "Bearer key"}, timeout=20
        ) as client:
            yield client
    finally:
        listener.close()
        server.close()
        upstream.close()


async def ask(client: httpx.AsyncClient) -> tuple[int, dict[str, Any], httpx.Headers]:
    """Return status, document and headers of an answer."""
    answer = await client.post("/v1/completions", json=REQUEST)
    return answer.status_code, answer.json(), answer.headers


async def test_the_engine_sees_the_path_and_nobodys_credential(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as client:
        status, document, headers = await ask(client)
    assert (status, document["echo"]) == (200, REQUEST)
    (seen,) = engine.seen
    assert seen.path == "/v1/completions"
    assert "authorization" not in seen.headers
    assert seen.headers["x-request-id"] == headers["x-request-id"]
    assert "x-gpustack-door" not in headers


async def test_a_stream_comes_piece_by_piece_through_both(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as client:
        engine.script = streams(engine)
        async with client.stream("POST", "/v1/completions", json={**REQUEST, "stream": True}) as answer:
            pieces = answer.aiter_text()
            assert '"n": 1' in await anext(pieces)
            engine.go_on.set()
            assert "[DONE]" in "".join([piece async for piece in pieces])


async def test_who_leaves_the_gateway_ends_the_work_of_the_engine(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as client:
        engine.script = thinks(engine)
        asking = asyncio.create_task(ask(client))
        async with asyncio.timeout(20):
            while not engine.seen:
                await asyncio.sleep(0.01)
            asking.cancel()
            await engine.aborted.wait()


async def test_requests_go_to_whoever_has_less_to_do_behind_one_door(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as one, FakeEngine(says_ok) as two, behind(door, [one, two]) as client:
        one.script, two.script = thinks(one), thinks(two)
        waiting = asyncio.create_task(ask(client))
        async with asyncio.timeout(20):
            while not (one.seen or two.seen):
                await asyncio.sleep(0.01)
            busy, idle = (one, two) if one.seen else (two, one)
            idle.script = says_ok
            for _ in range(4):
                assert (await ask(client))[0] == 200
            busy.go_on.set()
            assert (await waiting)[0] == 200
    assert (len(busy.seen), len(idle.seen)) == (1, 4)


async def test_an_engine_that_is_gone_is_passed_over(door: RunningDoor) -> None:
    async with (
        FakeEngine(says_ok) as there,
        FakeEngine(says_ok) as gone,
        behind(door, [gone, there]) as client,
    ):
        await gone.__aexit__()
        assert [(await ask(client))[0] for _ in range(3)] == [200] * 3
        door.forget(1)
        assert (await ask(client))[0] == 200
    assert len(there.seen) == 4


async def test_what_killed_one_engine_is_not_sent_to_the_next(door: RunningDoor) -> None:
    async with FakeEngine(hangs_up_silently) as one, FakeEngine(hangs_up_silently) as two:
        async with behind(door, [one, two]) as client:
            status, document, _ = await ask(client)
    assert (status, document["error"]["code"]) == (502, "engine_failed")
    assert len(one.seen) + len(two.seen) == 1


async def test_a_wrong_credential_is_no_answer_to_the_client(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as client:
        (door.data_dir / "worker" / "door_token").write_text("a-new-token-nobody-knows")
        try:
            status, document, _ = await ask(client)
        finally:
            (door.data_dir / "worker" / "door_token").write_text(TOKEN)
    assert (status, document["error"]["code"]) == (503, "model_not_ready")
    assert not engine.seen
