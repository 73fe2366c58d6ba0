from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest

from gpustack.kit.errors import Unavailable
from gpustack.schemas import EventType, InstanceState
from support.api import PASSWORD, Api

Line = dict[str, Any]


async def _lines(api: Api, url: str) -> AsyncGenerator[Line, None]:
    async with api.admin.stream("GET", url) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line:
                yield json.loads(line)


async def _take(lines: AsyncIterator[Line], count: int) -> list[Line]:
    async with asyncio.timeout(5):
        return [await anext(lines) for _ in range(count)]


async def test_a_list_is_paged_searched_and_sorted(api: Api) -> None:
    for name in ("b", "a", "ca", "d"):
        await api.model(name)

    first = (await api.admin.get("/v2/models?perPage=3&sort_by=-name")).json()
    found = (await api.admin.get("/v2/models?search=a&sort_by=name")).json()
    everything = (await api.admin.get("/v2/models?page=-1")).json()

    assert [item["name"] for item in first["items"]] == ["d", "ca", "b"]
    assert first["pagination"] == {"page": 1, "perPage": 3, "total": 4, "totalPage": 2}
    assert [item["name"] for item in found["items"]] == ["a", "ca"]
    assert everything["pagination"] == {"page": 1, "perPage": 0, "total": 4, "totalPage": 1}


async def test_a_watch_replays_marks_the_end_and_goes_on(api: Api) -> None:
    await api.model("a")
    lines = _lines(api, "/v2/models?watch=true")
    replay, end = await _take(lines, 2)
    await api.model("b")
    await api.admin.delete("/v2/models/1")
    created, deleted = await _take(lines, 2)
    await lines.aclose()

    assert (replay["type"], replay["id"], replay["data"]["name"]) == (EventType.CREATED, 1, "a")
    assert end["type"] == EventType.HEARTBEAT
    assert end["number"] == replay["number"]
    assert (created["type"], created["data"]["name"]) == (EventType.CREATED, "b")
    assert (deleted["type"], deleted["id"]) == (EventType.DELETED, 1)
    assert end["number"] < created["number"] < deleted["number"]


async def test_no_change_is_lost_or_doubled_while_watches_begin(api: Api) -> None:
    async def write() -> None:
        for number in range(60):
            await api.model(f"m{number}")

    async def names() -> list[str]:
        seen: list[str] = []
        lines = _lines(api, "/v2/models?watch=true")
        async for line in lines:
            if line["type"] == EventType.CREATED:
                seen.append(line["data"]["name"])
            if line["type"] == EventType.DELETED:
                await lines.aclose()
                break
        return seen

    writing = asyncio.create_task(write())
    watches = []
    while not writing.done():
        if len(watches) < 50:  # a client has 100 connections
            watches.append(asyncio.create_task(names()))
        await asyncio.sleep(0.03)
    await writing
    await asyncio.sleep(0.1)  # the last watches are subscribed by then
    await api.admin.delete("/v2/models/1")
    async with asyncio.timeout(20):
        for watch in watches:
            assert sorted(await watch) == sorted(f"m{number}" for number in range(60))


async def test_a_watch_goes_on_after_a_number_without_replay(api: Api) -> None:
    await api.model("a")
    number = await api.services.store.events.last_number()
    await api.model("b")

    [line] = await _take(_lines(api, f"/v2/models?watch=true&since={number}"), 1)

    assert line["data"]["name"] == "b"


async def test_a_number_that_is_not_kept_is_gone(api: Api) -> None:
    answer = await api.admin.get("/v2/models?watch=true&since=99999")

    assert answer.status_code == 410
    assert answer.json()["reason"] == "Gone"


async def test_a_worker_sees_what_comes_to_it_and_what_leaves(api: Api) -> None:
    model = await api.model()
    mine, other = (await api.worker())["id"], (await api.worker("uuid-of-worker-2"))["id"]
    lines = _lines(api, f"/v2/model-instances?watch=true&worker_id={mine}")
    [end] = await _take(lines, 1)
    instance = await api.instance(model, None)
    update = api.services.store.instances.update
    await update(instance, worker_id=other)
    await update(instance, worker_id=mine)
    await update(instance, state=InstanceState.SCHEDULED)
    await update(instance, worker_id=other)

    seen = await _take(lines, 3)

    assert end["type"] == EventType.HEARTBEAT
    assert [line["type"] for line in seen] == [EventType.CREATED, EventType.UPDATED, EventType.DELETED]
    assert {line["id"] for line in seen} == {instance}


async def test_a_quiet_watch_is_kept_alive(api: Api, monkeypatch: Any) -> None:
    monkeypatch.setattr("gpustack.server.api.listing.KEEP_ALIVE", 0.01)
    async with asyncio.timeout(5), api.admin.stream("GET", "/v2/models?watch=true") as answer:
        received = b""
        async for piece in answer.aiter_bytes():
            received += piece
            if received.endswith(b"\n\n\n\n"):
                return


async def test_watches_of_those_who_left_are_forgotten(api: Api) -> None:
    before = len(api.services.feed._subscriptions)
    lines = _lines(api, "/v2/models?watch=true")
    await _take(lines, 1)
    await lines.aclose()

    async with asyncio.timeout(5):
        while len(api.services.feed._subscriptions) > before:
            await asyncio.sleep(0.01)


async def test_stopping_ends_watches_cleanly_and_soon(api: Api) -> None:
    lines = _lines(api, "/v2/models?watch=true")
    await _take(lines, 1)

    api.serving.cancel()
    async with asyncio.timeout(2.5):
        rest = [line async for line in lines]
        await asyncio.wait({api.serving})

    assert rest == []


async def test_searching_in_a_watch_is_refused(api: Api) -> None:
    answer = await api.admin.get("/v2/models?watch=true&search=a")

    assert answer.status_code == 400
    assert "search" in answer.json()["message"]


@pytest.mark.parametrize("who", ["key", "session", "worker"])
async def test_a_watch_ends_with_the_credential_of_its_caller(
    api: Api, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr("gpustack.server.api.listing.KEEP_ALIVE", 0.05)
    worker = await api.worker()
    if who == "session":
        await api.anyone.post("/auth/login", json={"username": "admin", "password": PASSWORD})
        client = httpx.AsyncClient(base_url=api.url, cookies=api.anyone.cookies)
    else:
        client = api.client(await api.key() if who == "key" else worker["token"])
    async with asyncio.timeout(5), client, client.stream("GET", "/v2/model-instances?watch=true") as answer:
        pieces = answer.aiter_bytes()
        for _ in range(5):
            await anext(pieces)
        match who:
            case "key":
                await api.admin.delete("/v2/api-keys/1")
            case "session":
                await api.services.store.sessions.delete_of_user(1)
            case _:
                await api.admin.delete(f"/v2/workers/{worker['id']}")
        async for _ in pieces:
            pass


async def test_a_watch_outlasts_the_database_being_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_digest: str) -> None:
        raise Unavailable("the database does not answer now", retry_after=1)

    monkeypatch.setattr("gpustack.server.api.listing.KEEP_ALIVE", 0.02)
    worker = await api.worker()
    async with (
        asyncio.timeout(5),
        api.client(worker["token"]) as client,
        client.stream("GET", "/v2/model-instances?watch=true") as answer,
    ):
        pieces = answer.aiter_bytes()
        await anext(pieces)
        monkeypatch.setattr(api.services.store.workers, "by_token_digest", away)
        for _ in range(5):
            await anext(pieces)
