"""Another model stands in for one that cannot answer, and nothing of either is left afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gpustack.plugin.routing import Limits, Route
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import CHAT, SOON, Running, a_gateway, a_route, a_target, nobody


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path, hold_seconds=0.05) as gateway:
        yield gateway


async def ask(running: Running, model: str = "tiny", *, stream: bool = False) -> httpx.Response:
    body = {**CHAT, "model": model, "stream": stream}
    return await running.client.post("/v1/chat/completions", json=body)


def load(running: Running, name: str) -> tuple[int, int, int]:
    return running.gateway.admission.load().get(name, (0, 0, 0))


async def until_waiting(running: Running, name: str, count: int = 1) -> None:
    async with asyncio.timeout(SOON):
        while load(running, name)[1] != count:
            await asyncio.sleep(0.01)


async def until_running(running: Running, name: str, count: int = 1) -> None:
    async with asyncio.timeout(SOON):
        while load(running, name)[0] != count:
            await asyncio.sleep(0.01)


async def stopped(name: str) -> Route:
    return a_route(name=name, fallback="small", obstacle="is stopped")


async def deaf(name: str) -> Route:
    return a_route(a_target(1, await nobody()), name=name, fallback="small")


async def deaf_and_full(name: str) -> Route:
    return a_route(
        *[a_target(number, await nobody(), slots=1) for number in (11, 12)], name=name, fallback="small"
    )


@pytest.mark.parametrize("lacking", [stopped, deaf, deaf_and_full])
@pytest.mark.parametrize("limits", [Limits(), Limits(concurrency=1, requests_per_minute=6)])
async def test_each_fallback_gives_its_turn_back(running: Running, lacking, limits: Limits) -> None:  # type: ignore[no-untyped-def]
    with FakeEngine() as engine:
        small = a_route(a_target(2, engine, served_name="small", slots=2), name="small", queue_seconds=0.5)
        running.apply(await lacking("tiny"), small, limits=limits)
        for _ in range(6):
            answer = await ask(running)
            assert answer.status_code == 200, answer.text
            await running.at_rest()
        assert [body["model"] for _, body in engine.requests] == ["small"] * 6


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_full_queue_falls_back(running: Running, stream: bool) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as slow, FakeEngine() as quick:
        running.apply(
            a_route(a_target(1, slow, slots=1), fallback="small", queue_requests=0),
            a_route(a_target(2, quick, slots=1), name="small"),
        )
        first = asyncio.create_task(ask(running))
        await until_running(running, "tiny")
        answers = [await ask(running, stream=stream) for _ in range(3)]
        assert not first.done()
        assert [each.status_code for each in (await first, *answers)] == [200] * 4
        assert len(quick.requests) == 3
        await running.at_rest()


async def test_a_stream_whose_queue_took_too_long_falls_back(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=1.0)) as slow, FakeEngine() as quick:
        running.apply(
            a_route(a_target(1, slow, slots=1), fallback="small", queue_seconds=0.2),
            a_route(a_target(2, quick, slots=1), name="small"),
        )
        first = asyncio.create_task(ask(running))
        await until_running(running, "tiny")
        answer = await ask(running, stream=True)
        assert answer.text.startswith(": waiting\n\n")
        assert answer.text.endswith("data: [DONE]\n\n")
        assert (await first).status_code == 200
        await running.at_rest()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_who_leaves_while_the_fallback_has_no_room_waits_no_longer(
    running: Running, stream: bool
) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as engine:
        running.apply(await stopped("tiny"), a_route(a_target(2, engine, slots=1), name="small"))
        first = asyncio.create_task(ask(running))
        await until_running(running, "small")
        second = asyncio.create_task(ask(running, stream=stream))
        await until_waiting(running, "small")
        await asyncio.sleep(0.15)  # a stream has begun by now
        second.cancel()
        with suppress(asyncio.CancelledError):
            await second
        await until_waiting(running, "small", 0)
        assert (await first).status_code == 200
        await running.at_rest()
        assert (await ask(running, "small")).status_code == 200


async def test_a_stream_that_waits_for_its_fallback_gets_its_signs_of_life_once(running: Running) -> None:
    """More would go on in the midst of the answer."""
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as engine:
        running.apply(
            replace(await stopped("tiny"), asleep=True, start_seconds=0.2),
            a_route(a_target(2, engine, slots=1), name="small"),
        )
        first = asyncio.create_task(ask(running, "small"))
        await until_running(running, "small")
        answer = await ask(running, stream=True)
        assert (await first).status_code == 200
        before, said, _ = answer.text.partition("data:")
        assert said
        assert ": waiting" in before
        assert ": waiting" not in answer.text[len(before) :]
        await running.at_rest()


async def test_a_fallback_that_is_full_too_is_told_of_and_leaves_nothing(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as engine:
        running.apply(
            await deaf("tiny"), a_route(a_target(2, engine, slots=1), name="small", queue_requests=0)
        )
        first = asyncio.create_task(ask(running, "small"))
        await until_running(running, "small")
        answer = await ask(running)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
        assert (await first).status_code == 200
        await running.at_rest()
