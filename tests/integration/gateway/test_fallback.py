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
from support.gateway import CHAT, SOON, Running, a_gateway, a_route, a_target, an_engine, nobody


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


# By status ------------------------------------------------------------------------------------------------


def saying(status: int, body: bytes = b'{"error": {"message": "out of memory"}}') -> bytes:
    head = b"HTTP/1.1 %d Said\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("codes", "status", "falls_back"),
    [
        (("5xx",), 500, True),
        (("5xx",), 400, False),
        (("4xx", "5xx"), 404, True),
        (("429",), 429, True),
        (("429",), 500, False),
        ((), 500, False),
        (("5xx",), 501, True),
    ],
)
async def test_an_engines_error_leads_to_the_fallback_where_the_route_says_so(
    running: Running, codes: tuple[str, ...], status: int, falls_back: bool, stream: bool
) -> None:
    async with an_engine(saying(status)) as port:
        with FakeEngine() as engine:
            running.apply(
                a_route(a_target(1, port, slots=1), fallback="small", fallback_status_codes=codes),
                a_route(a_target(2, engine, slots=1), name="small"),
                limits=Limits(concurrency=1, requests_per_minute=3),
            )
            for _ in range(3):
                answer = await ask(running, stream=stream)
                assert answer.status_code == (200 if falls_back else status), answer.text
                await running.at_rest()
            assert len(engine.requests) == 3 * falls_back


async def test_an_engine_without_the_path_leads_to_the_fallback_too(running: Running) -> None:
    body = b'{"error":{"code":404,"message":"File Not Found"}}'
    head = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    async with an_engine(head % len(body) + body) as port:
        with FakeEngine() as engine:
            running.apply(
                a_route(a_target(1, port), fallback="small", fallback_status_codes=("4xx",)),
                a_route(a_target(2, engine), name="small"),
            )
            assert (await ask(running)).status_code == 200


async def test_an_engine_that_dies_is_an_error_of_it_too(running: Running) -> None:
    async with an_engine(b"") as port:
        with FakeEngine() as engine:
            running.apply(
                a_route(a_target(1, port), fallback="small", fallback_status_codes=("502",)),
                a_route(a_target(2, engine), name="small"),
            )
            assert (await ask(running)).status_code == 200
            await running.at_rest()


async def test_what_has_begun_to_be_answered_is_not_asked_again(running: Running) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\ndata: {}\n\n"
    async with an_engine(head) as port:
        with FakeEngine() as engine:
            running.apply(
                a_route(a_target(1, port), fallback="small", fallback_status_codes=("4xx", "5xx")),
                a_route(a_target(2, engine), name="small"),
            )
            answer = await ask(running, stream=True)
            assert answer.status_code == 200
            assert '"error"' in answer.text
            assert not engine.requests
            await running.at_rest()


@pytest.mark.parametrize("name", ["small", "there-is-none"])
async def test_the_engines_error_is_told_where_nobody_stands_in(running: Running, name: str) -> None:
    async with an_engine(saying(500)) as port:
        running.apply(
            a_route(a_target(1, port), fallback=name, fallback_status_codes=("5xx",)),
            a_route(name="small", obstacle="is stopped"),
        )
        answer = await ask(running)
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "out of memory")
        await running.at_rest()


async def test_a_fallback_without_a_route_of_its_own_is_asked_as_well(running: Running) -> None:
    async with an_engine(saying(500)) as port:
        with FakeEngine() as engine:
            spare = a_target(2, engine, weight=0, slots=1, model="small")
            running.apply(a_route(a_target(1, port, slots=1), spare, fallback_status_codes=("5xx",)))
            assert [(await ask(running)).status_code for _ in range(3)] == [200] * 3
            assert len(engine.requests) == 3
            await running.at_rest()
