"""What a model says of times and queues, by way of its route, held by a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpustack.db import Door
from gpustack.plugin.routing import Route
from gpustack.schemas import (
    InstanceState,
    ModelInstancePublic,
    ModelPublic,
    ModelRoutePublic,
    ModelRouteTargetPublic,
)
from gpustack.server.routing_targets import Fleet, route_of
from gpustack.testing.fakes.engine import Behaviour, FakeEngine
from support.gateway import CHAT, SOON, Running, a_gateway, an_engine, request_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STAMPS: dict[str, Any] = {"created_at": NOW, "updated_at": NOW}


def published(*ports: int, **model: Any) -> Route:
    """Return the route of a model with instances at these ports, as the server publishes it."""
    instances = {
        number: ModelInstancePublic(
            id=number, name=f"tiny-{number}", model_id=1, model_name="tiny", cluster_id=1, worker_id=1,
            state=InstanceState.RUNNING, state_since=NOW, port=port, **STAMPS,
        )
        for number, port in enumerate(ports, 1)
    }  # fmt: skip
    fleet = Fleet(
        models={1: ModelPublic(id=1, name="tiny", cluster_id=1, **STAMPS, **model)},
        instances={1: instances},
        doors={1: Door("10.0.0.1", 10150, "secret", "own")},
        built_in="own",
    )
    target = ModelRouteTargetPublic(
        id=1, route_id=1, model_id=1, model_name="tiny", weight=100, is_fallback=False, **STAMPS
    )
    return route_of(ModelRoutePublic(id=1, name="tiny", targets=[target], **STAMPS), fleet)


def port_of(engine: FakeEngine) -> int:
    return int(engine.url.rpartition(":")[2])


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path) as gateway:
        yield gateway


async def ask(running: Running, **more: Any) -> Any:
    return await running.client.post("/v1/chat/completions", json={**CHAT, **more})


async def test_an_answer_that_does_not_begin_is_given_up_after_the_models_time(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=5.0)) as engine:
        running.apply(published(port_of(engine), timeouts={"first_byte": 0.3}))
        answer = await ask(running)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "engine_timeout"


async def test_a_stream_that_stands_still_is_ended_after_the_models_time(running: Running) -> None:
    async def one_piece(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n")
        await asyncio.sleep(20)

    async with an_engine(one_piece) as port:
        running.apply(published(port, timeouts={"between": 0.3}))
        async with asyncio.timeout(10):
            answer = await ask(running, stream=True)
    assert answer.status_code == 200
    assert '"error"' in answer.text.splitlines()[-2]


async def test_beyond_its_slots_requests_wait_and_beyond_its_bound_they_are_refused(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as engine:
        running.apply(published(port_of(engine), queue={"slots": 1, "requests": 2}))
        answers = await asyncio.gather(*(ask(running) for _ in range(5)))
    served = [each for each in answers if each.status_code == 200]
    refused = [each for each in answers if each.status_code == 503]
    assert (len(served), len(refused)) == (3, 2)
    assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
    assert {each.json()["error"]["code"] for each in refused} == {"queue_full"}
    assert sorted("x-queue-time" in each.headers for each in served) == [False, True, True]


async def test_a_bound_of_tokens_holds_too(running: Running) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 400}]}
    with FakeEngine(Behaviour(time_to_first_token=0.5)) as engine:
        running.apply(published(port_of(engine), queue={"slots": 1, "tokens": 700}))
        answers = await asyncio.gather(*(ask(running, **long) for _ in range(4)))
    # One at work, and one whose five hundred tokens wait.
    assert sorted(each.status_code for each in answers) == [200, 200, 503, 503]


async def test_nobody_waits_for_a_turn_longer_than_the_model_says(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=1.5)) as engine:
        running.apply(published(port_of(engine), queue={"slots": 1, "wait_seconds": 0.3}))
        answers = await asyncio.gather(ask(running), ask(running))
    assert sorted(each.status_code for each in answers) == [200, 503]
    (late,) = [each for each in answers if each.status_code == 503]
    assert late.json()["error"]["code"] == "queue_timeout"


async def test_nobody_waits_for_a_start_longer_than_the_model_says(running: Running) -> None:
    running.apply(published(min_replicas=0, replicas=0, autoscaling={"start_seconds": 0.3}))
    answer = await ask(running)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["message"].endswith("did not start within 0.3 s: it is asleep")


async def test_a_connection_that_does_not_come_about_is_given_up_after_the_models_time(
    running: Running,
) -> None:
    with socket.socket() as deaf, contextlib.ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # Its queue is full, so that no more connections come about and none is refused.
        for _ in range(2):
            waiting.enter_context(contextlib.closing(filler := socket.socket()))
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        running.apply(published(deaf.getsockname()[1], timeouts={"connect": 0.2}))
        began = time.monotonic()
        answer = await ask(running)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
    assert time.monotonic() - began < 2.0


async def test_each_model_has_its_own(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.6)) as engine:
        hasty = published(port_of(engine), timeouts={"first_byte": 0.2})
        running.apply(hasty, replace(published(port_of(engine)), name="patient"))
        answers = await asyncio.gather(ask(running), ask(running, model="patient"))
    assert [each.status_code for each in answers] == [504, 200]


async def test_a_change_holds_for_the_next_request(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.4)) as engine:
        running.apply(published(port_of(engine), timeouts={"first_byte": 0.1}))
        assert (await ask(running)).status_code == 504
        running.apply(published(port_of(engine), timeouts={"first_byte": 9}))
        assert (await ask(running)).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_who_leaves_waits_for_no_start_any_longer(tmp_path: Path, stream: bool) -> None:
    async with a_gateway(tmp_path, hold_seconds=0.05) as running:
        running.apply(published(min_replicas=0, replicas=0))
        stays = asyncio.create_task(ask(running, stream=stream))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await ask(running, stream=stream)
        async with asyncio.timeout(SOON):
            while running.gateway.admission.load()["tiny"][1] != 1:
                await asyncio.sleep(0.01)
        with FakeEngine() as engine:
            running.apply(published(port_of(engine), min_replicas=0))
            assert (await stays).status_code == 200
            assert len(engine.requests) == 1
        await running.at_rest()


async def test_a_stream_that_waits_for_a_start_is_kept_alive_and_then_answered(tmp_path: Path) -> None:
    async with a_gateway(tmp_path, hold_seconds=0.1) as running:
        with FakeEngine() as engine:
            running.apply(published(min_replicas=0, replicas=0))
            waiting = asyncio.create_task(ask(running, stream=True))
            await asyncio.sleep(0.5)
            running.apply(published(port_of(engine), min_replicas=0))
            answer = await waiting
    assert answer.text.startswith(": waiting\n\n: waiting\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_pictures_and_recordings_wait_for_a_start_beside_others(running: Running) -> None:
    """A megabyte of base64 or of a file is no 200,000 tokens of text."""
    asleep = published(min_replicas=0, replicas=0)
    running.apply(asleep)
    recording = {"file": ("a.wav", b"\x01\x80" * 500_000, "audio/wav")}
    url = "data:image/png;base64," + "iVBORw0KGgo7" * 90_000
    picture = {**CHAT, "messages": [{"role": "user", "content": [{"image_url": {"url": url}}]}]}
    post = running.client.post
    small = [asyncio.create_task(ask(running)) for _ in range(2)]
    large = [asyncio.create_task(post("/v1/chat/completions", json=picture)) for _ in range(2)]
    large.append(
        asyncio.create_task(post("/v1/audio/transcriptions", data={"model": "tiny"}, files=recording))
    )
    async with asyncio.timeout(SOON):
        while running.gateway.admission.load().get("tiny", (0, 0, 0))[1] != 5:
            assert not any(each.done() for each in small + large)
            await asyncio.sleep(0.01)
    assert 3000 < running.gateway.admission.waiting("tiny")[1] < 20_000
    with FakeEngine() as engine:
        running.apply(published(port_of(engine), min_replicas=0))
        answers = await asyncio.gather(*small, *large[:2])
        await large[2]
    assert [each.status_code for each in answers] == [200] * 4
    await running.at_rest()


async def test_routes_to_the_same_model_share_its_slots(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.3)) as engine:
        own = published(port_of(engine), queue={"slots": 1})
        running.apply(own, replace(own, name="r2"))
        answers = await asyncio.gather(ask(running), ask(running, model="r2"))
        assert [each.status_code for each in answers] == [200, 200]
        assert sum("x-queue-time" in each.headers for each in answers) == 1
        await running.at_rest()


async def test_a_canary_takes_no_slot_that_is_taken(running: Running) -> None:
    with FakeEngine(Behaviour(time_to_first_token=0.3)) as old, FakeEngine() as new:
        targets = [
            replace(target, slots=1, model=name, served_name=name, instance_id=number)
            for number, (name, engine) in enumerate((("old", old), ("new", new)), 1)
            for target in published(port_of(engine)).targets
        ]
        route = replace(published(), name="old", targets=(targets[0],))
        running.apply(route, replace(route, name="tiny", targets=tuple(targets)))
        first = asyncio.create_task(ask(running, model="old"))
        async with asyncio.timeout(SOON):
            while not old.requests:
                await asyncio.sleep(0.01)
        assert [(await ask(running)).status_code for _ in range(6)] == [200] * 6
        assert not first.done()
        assert (await first).status_code == 200
        assert (len(old.requests), len(new.requests)) == (1, 6)
        await running.at_rest()
