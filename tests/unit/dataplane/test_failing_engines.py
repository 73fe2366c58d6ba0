"""A request is worked on once: what makes one engine crash is not handed to the next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from gpustack.dataplane import Upstream
from gpustack.dataplane.gateway.asgi import GatewayApp, in_process
from gpustack.plugin.routing import Principal, Route, RoutingTable, Target, digest
from support.fake_engine import (
    STREAM_HEAD,
    FakeEngine,
    Script,
    Seen,
    chunk,
    hangs_up_silently,
    says_ok,
)

GOOD, POISON = {"model": "tiny"}, {"model": "tiny", "prompt": "poison"}


@contextlib.asynccontextmanager
async def serving(engines: Sequence[FakeEngine]) -> AsyncIterator[GatewayApp]:
    targets = tuple(
        Target(instance_id=number, host="127.0.0.1", port=engine.port)
        for number, engine in enumerate(engines)
    )
    table = RoutingTable(
        routes={"tiny": Route(name="tiny", created=0, targets=targets)},
        principals={digest("key"): Principal(user_id=1, username="u")},
    )
    async with in_process() as app:
        app.apply(table)
        yield app


def crashes_on_poison(engine: FakeEngine, after: float) -> Script:
    """Serve until the poison comes; then end ``after`` seconds, as a process does: nobody listens any more."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"poison" in seen.body:
            await asyncio.sleep(after)
            await engine.__aexit__()
            raise ConnectionError
        await says_ok(seen, reader, writer)

    return script


@pytest.mark.parametrize("after", [0.0, 0.2])
async def test_what_crashes_one_engine_is_not_sent_to_the_next(call: Any, after: float) -> None:
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(10):
        engines = [await stack.enter_async_context(FakeEngine(says_ok)) for _ in range(3)]
        for engine in engines:
            engine.script = crashes_on_poison(engine, after)
        app = await stack.enter_async_context(serving(engines))
        for _ in engines:
            assert (await call(app, GOOD)).status == 200
        assert [engine.connections for engine in engines] == [1, 1, 1]

        poisoned = await call(app, POISON)
        later = [(await call(app, GOOD)).status for _ in range(4)]

    assert (poisoned.status, poisoned.error["code"]) == (502, "engine_failed")
    assert [sum(b"poison" in seen.body for seen in engine.seen) for engine in engines] == [1, 0, 0]
    assert later == [200] * 4


def closes_idle_connections() -> Script:
    """Answer once on each connection and hang up at the next request, as an engine does that was about to."""
    served: set[asyncio.StreamWriter] = set()

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer in served:
            raise ConnectionError
        served.add(writer)
        await says_ok(seen, reader, writer)

    return script


async def test_an_idle_connection_that_was_just_closed_is_replaced(call: Any) -> None:
    async with FakeEngine(closes_idle_connections()) as engine, serving([engine]) as app:
        statuses = [(await call(app, GOOD)).status for _ in range(3)]

    assert statuses == [200] * 3
    assert engine.connections == 3


async def test_the_connection_of_a_stream_is_not_used_again(call: Any) -> None:
    async def streams_and_closes_late(
        seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await asyncio.sleep(0.2)
        raise ConnectionError

    async with FakeEngine(streams_and_closes_late) as engine, serving([engine]) as app:
        streamed = await call(app, GOOD)
        engine.script = says_ok
        answered = await call(app, GOOD)

    assert (streamed.status, answered.status, engine.connections) == (200, 200, 2)


async def test_a_connection_that_was_unused_for_long_is_not_used_again() -> None:
    async with FakeEngine(says_ok) as engine, Upstream(idle_seconds=0.02) as upstream:
        for pause in (0.0, 0.0, 0.05):
            await asyncio.sleep(pause)
            async with upstream.request("POST", "127.0.0.1", engine.port, "/", [], b"{}") as exchange:
                assert b"".join([piece async for piece in exchange])

    assert engine.connections == 2


async def test_it_is_replaced_once(call: Any) -> None:
    async with FakeEngine(says_ok) as engine, FakeEngine(says_ok) as other:
        async with serving([engine, other]) as app:
            for _ in range(2):
                await call(app, GOOD)
            engine.script = hangs_up_silently
            answered = await call(app, GOOD)

    assert answered.status == 502
    assert (len(engine.seen), len(other.seen)) == (3, 1)


async def test_an_engine_that_hangs_up_late_had_begun_to_work(call: Any) -> None:
    async def works_and_dies(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        raise ConnectionError

    async with FakeEngine(says_ok) as engine, serving([engine]) as app:
        await call(app, GOOD)
        engine.script = works_and_dies
        answered = await call(app, GOOD)

    assert answered.status == 502
    assert len(engine.seen) == 2
