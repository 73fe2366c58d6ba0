"""Two hundred workers that come back at once, as after a cut of the server's own network or a new start of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from support.api import Api

from .test_worker_identity import Machine, count

_WORKERS = 200

pytestmark = pytest.mark.slow


@pytest.fixture
async def crowd(api: Api) -> AsyncIterator[list[Machine]]:
    """Workers that have joined, each at a home of its own, and all of one name."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=api.url, limits=limits, timeout=60) as client:
        crowded = replace(api, anyone=client)
        machines = [
            Machine(
                crowded, home=f"home-{number}", boot=f"boot-{number}", worker_uuid=f"uuid-of-box-{number}"
            )
            for number in range(_WORKERS)
        ]
        await asyncio.gather(*(each.join() for each in machines))
        yield machines


async def _watch(machine: Machine, number: int) -> list[bytes]:
    """Return what a watch of the worker's instances begins with."""
    headers = {"Authorization": f"Bearer {machine.credential}", "X-GPUStack-Session": str(machine.session)}
    path = f"/v2/model-instances?watch=true&worker_id={number}"
    async with machine.api.anyone.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            return [line.encode()]
    raise AssertionError("the watch ended before it began")


async def test_all_are_back_as_they_were(api: Api, crowd: list[Machine]) -> None:
    before = {each["worker_uuid"]: each for each in await _rows(api)}
    assert len(before) == _WORKERS

    async def come_back(machine: Machine) -> int:
        number = await machine.join(start="second")
        assert await machine.beat() == 204
        await _watch(machine, number)
        return number

    numbers = await asyncio.gather(*(come_back(each) for each in crowd))

    after = {each["worker_uuid"]: each for each in await _rows(api)}
    assert await count(api) == _WORKERS
    assert sorted(numbers) == sorted(each["id"] for each in before.values())
    assert {each.session for each in crowd} == {2}
    assert {uuid: each["name"] for uuid, each in after.items()} == {
        uuid: each["name"] for uuid, each in before.items()
    }
    assert Counter(each["state"] for each in after.values()) == {"ready": _WORKERS}


async def _rows(api: Api) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await api.admin.get("/v2/workers?page=-1", timeout=60)).json()["items"]
    return items
