"""The data path asks engines behind doors as it asks those on its own machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from gpustack.dataplane import Balancer, InferenceApp, Principal, Route, RoutingTable, Target, Upstream
from gpustack.dataplane.door import instance_credential
from gpustack.plugin.routing import digest
from support.door import TOKEN, RunningDoor, a_door
from support.fake_engine import FakeEngine, hangs_up_silently, says_ok, thinks

REQUEST = {"model": "tiny", "prompt": "x"}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDoor]:
    with a_door(tmp_path_factory.mktemp("door")) as made:
        yield made


@contextlib.asynccontextmanager
async def behind(door: RunningDoor, engines: Sequence[FakeEngine]) -> AsyncIterator[InferenceApp]:
    """Return a data path with one target for each engine, all behind one door."""
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
    table = RoutingTable(
        routes={"tiny": Route(name="tiny", created=0, targets=targets)},
        principals={digest("key"): Principal(user_id=1, username="u")},
    )
    async with Upstream() as upstream:
        yield InferenceApp(lambda: table, upstream, Balancer())


async def ask(app: InferenceApp) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Ask as a client does; return status, document and headers."""
    body = [{"type": "http.request", "body": json.dumps(REQUEST).encode()}]
    status, content, headers = 0, b"", {}

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        nonlocal status, content, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            content += message["body"]

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
        "headers": [(b"authorization", b"Bearer key")],
    }  # fmt: skip
    await app(scope, receive, send)
    return status, json.loads(content), headers


async def test_the_engine_sees_the_path_and_nobodys_credential(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as app:
        status, document, headers = await ask(app)
    assert (status, document["echo"]) == (200, REQUEST)
    (seen,) = engine.seen
    assert seen.path == "/v1/completions"
    assert "authorization" not in seen.headers
    assert seen.headers["x-request-id"] == headers["x-request-id"]


async def test_requests_go_round_between_engines_behind_one_door(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as busy, FakeEngine(says_ok) as idle, behind(door, [busy, idle]) as app:
        busy.script = thinks(busy)
        waiting = asyncio.create_task(ask(app))
        async with asyncio.timeout(20):
            while not busy.seen:
                await asyncio.sleep(0.01)
            for _ in range(4):
                assert (await ask(app))[0] == 200
            busy.go_on.set()
            assert (await waiting)[0] == 200
    assert (len(busy.seen), len(idle.seen)) == (1, 4)


async def test_an_engine_that_is_gone_is_passed_over(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as there, FakeEngine(says_ok) as gone, behind(door, [gone, there]) as app:
        await gone.__aexit__()
        assert [(await ask(app))[0] for _ in range(3)] == [200] * 3
        door.forget(1)
        assert (await ask(app))[0] == 200
    assert len(there.seen) == 4


async def test_what_killed_one_engine_is_not_sent_to_the_next(door: RunningDoor) -> None:
    async with FakeEngine(hangs_up_silently) as dying, FakeEngine(says_ok) as other:
        async with behind(door, [dying, other]) as app:
            status, document, _ = await ask(app)
    assert (status, document["error"]["code"]) == (502, "engine_failed")
    assert not other.seen


async def test_a_wrong_credential_is_no_answer_to_the_client(door: RunningDoor) -> None:
    async with FakeEngine(says_ok) as engine, behind(door, [engine]) as app:
        (door.data_dir / "worker" / "door_token").write_text("a-new-token-nobody-knows")
        try:
            status, document, _ = await ask(app)
        finally:
            (door.data_dir / "worker" / "door_token").write_text(TOKEN)
    assert (status, document["error"]["code"]) == (503, "model_not_ready")
    assert not engine.seen
