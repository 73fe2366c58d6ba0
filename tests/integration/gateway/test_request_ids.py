"""The id that a client was told is found in the record of usage and in the access log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gpustack.testing.fakes.engine import FakeEngine
from support.gateway import CHAT, SOON, Running, a_gateway, a_route, a_target


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
async def running(tmp_path: Path, log: Path) -> AsyncIterator[Running]:
    async with a_gateway(tmp_path, access_log=log) as gateway:
        yield gateway


async def line_of(log: Path, request_id: str) -> dict[str, object]:
    """Return the line with this id, once it is there."""
    async with asyncio.timeout(SOON):
        while True:
            found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            for each in found:
                if each["request_id"] == request_id:
                    return each
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("given", [None, "mine:7"])
async def test_a_records_request_id_is_the_one_that_the_client_was_told(
    running: Running, log: Path, given: str | None
) -> None:
    with FakeEngine() as engine:
        running.apply(a_route(a_target(1, engine)))
        headers = {} if given is None else {"x-request-id": given}
        answer = await running.client.post("/v1/chat/completions", json=CHAT, headers=headers)
    told = answer.headers["x-request-id"]
    assert told == (given or told) != ""
    (record,) = await running.records()
    assert record.request_id == told != record.id
    assert (await line_of(log, told))["status"] == 200


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/v1/models", "sk-alice", 200),
        ("/v1/models/other", "sk-alice", 404),
        ("/v1/models", "sk-wrong", 401),
        ("/v1/nothing", "sk-alice", 404),
    ],
)
async def test_answers_that_no_model_gave_have_their_line_and_took_some_time(
    running: Running, log: Path, path: str, key: str, status: int
) -> None:
    running.apply(a_route())
    async with httpx.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {key}"}) as client:
        answer = await client.get(path)
    assert answer.status_code == status
    line = await line_of(log, answer.headers["x-request-id"])
    assert (line["path"], line["status"]) == (path, status)
    assert isinstance(line["duration"], float)
    assert 0 < line["duration"] < 10


async def test_a_wrong_key_for_a_chat_is_noted_with_the_id_too(running: Running, log: Path) -> None:
    running.apply(a_route())
    answer = await running.client.post(
        "/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-wrong"}
    )
    line = await line_of(log, answer.headers["x-request-id"])
    assert (line["status"], line["method"]) == (401, "POST")
    assert 0 < float(str(line["duration"])) < 10
