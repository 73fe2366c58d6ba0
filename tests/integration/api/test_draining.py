"""What becomes of instances when they, or their model, are deleted: the rows, and what is told of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gpustack.dataplane import RoutingTable
from gpustack.kit.errors import Conflict, NotFound
from gpustack.schemas import InstanceState, ModelUpdate
from gpustack.schemas.models import Rollout
from support.api import Api, as_worker
from support.fake_engine import FakeEngine, Seen

S = InstanceState


_numbers = itertools.count(1)


async def _instance(api: Api, model: dict[str, Any], worker_id: int | None, **columns: Any) -> int:
    return await api.instance(model, worker_id, f"instance-{next(_numbers)}", **columns)


async def _rows(api: Api) -> dict[int, Any]:
    return {each.id: each for each in (await api.services.store.instances.list(page=-1)).items}


async def test_a_deleted_model_is_gone_at_once_and_its_placed_instances_drain(api: Api) -> None:
    worker = await api.worker()
    model = await api.model("tiny")
    placed = await _instance(api, model, worker["id"], state=S.RUNNING)
    await _instance(api, model, None)
    body = {"local_path": "/m.gguf", "rollout": {"drain_seconds": 7}}
    assert (await api.admin.put(f"/v2/models/{model['id']}", json=body)).status_code == 200

    assert (await api.admin.delete(f"/v2/models/{model['id']}")).status_code == 204

    rows = await _rows(api)
    assert set(rows) == {placed}
    assert (rows[placed].state, rows[placed].drain_seconds) == (S.RUNNING, 7)
    assert rows[placed].draining_since is not None
    assert rows[placed].state_message == "model tiny was removed"
    assert (await api.admin.delete(f"/v2/models/{model['id']}")).status_code == 404
    again = await api.model("tiny")
    assert again["id"] != model["id"]


async def test_forced_nothing_of_it_stays(api: Api) -> None:
    worker = await api.worker()
    model = await api.model("tiny")
    await _instance(api, model, worker["id"], state=S.RUNNING)

    assert (await api.admin.delete(f"/v2/models/{model['id']}?force=true")).status_code == 204

    assert not await _rows(api)


async def test_an_instance_drains_unless_forced(api: Api) -> None:
    worker = await api.worker()
    model = await api.model()
    places = (worker["id"], worker["id"], None)
    first, second, third = [await _instance(api, model, place, state=S.RUNNING) for place in places]
    for number in (first, third):
        assert (await api.admin.delete(f"/v2/model-instances/{number}")).status_code == 204
    assert (await api.admin.delete(f"/v2/model-instances/{second}?force=true")).status_code == 204

    rows = await _rows(api)
    assert set(rows) == {first}
    since = rows[first].draining_since
    assert rows[first].drain_seconds == Rollout().drain_seconds

    assert (await api.admin.delete(f"/v2/model-instances/{first}")).status_code == 204
    assert (await _rows(api))[first].draining_since == since, "its time does not begin anew"
    assert (await api.admin.delete(f"/v2/model-instances/{first}?force=true")).status_code == 204
    assert (await api.admin.delete(f"/v2/model-instances/{first}")).status_code == 404


async def test_its_worker_reports_the_end_and_nobody_else(api: Api) -> None:
    worker, other = await api.worker(), await api.worker("uuid-of-worker-2")
    instance = await _instance(api, await api.model(), worker["id"], state=S.RUNNING)
    path, body = f"/v2/model-instances/{instance}/report", {"state": "running", "ended": True}

    answer = await api.anyone.post(path, json=body, headers=as_worker(worker))
    assert (answer.status_code, answer.json()["reason"]) == (409, "Conflict")
    assert "does not drain" in answer.json()["message"]
    await api.admin.delete(f"/v2/model-instances/{instance}")
    assert (await api.anyone.post(path, json=body, headers=as_worker(other))).status_code == 409
    assert (await api.admin.post(path, json=body)).status_code == 403
    assert instance in await _rows(api)

    assert (await api.anyone.post(path, json=body, headers=as_worker(worker))).status_code == 200
    assert not await _rows(api)
    assert (await api.anyone.post(path, json=body, headers=as_worker(worker))).status_code == 404
    events = (await api.admin.get(f"/v2/model-instance-events?instance_id={instance}")).json()["items"]
    assert [each["what"] for each in events[:2]] == ["removed", "draining"]


async def test_a_state_that_was_decided_on_must_still_hold(api: Api) -> None:
    worker = await api.worker()
    instances = api.services.store.instances
    instance = await _instance(api, await api.model(), worker["id"], state=S.RUNNING)

    with pytest.raises(Conflict):
        await instances.drain(instance, why="x", expect_state=S.STARTING)
    with pytest.raises(NotFound):
        await instances.drain(10**6, why="x")


async def test_deleting_a_model_meets_a_change_of_it_and_of_its_instances(api: Api) -> None:
    """All lock the same rows; nobody waits for ever, and nothing is left behind."""
    store = api.services.store
    worker = await api.worker()
    for _ in range(10):
        model = await store.models.get((await api.model("tiny"))["id"])
        numbers = [await _instance(api, {"id": model.id}, worker["id"], state=S.RUNNING) for _ in range(3)]
        wanted = ModelUpdate(local_path="/m.gguf", replicas=2)
        work: list[Awaitable[Any]] = [
            store.models.delete(model.id),
            store.models.update(model.id, wanted),
            store.instances.create(model, f"late-{model.id}"),
            *(store.instances.drain(number, why="by hand") for number in numbers),
            *(store.instances.update(number, state=S.ERROR) for number in numbers),
        ]
        async with asyncio.timeout(20):
            done = await asyncio.gather(*work, return_exceptions=True)
        assert not [
            each for each in done if isinstance(each, BaseException) and not isinstance(each, NotFound)
        ]
        rows = await _rows(api)
        assert all(rows[number].draining_since is not None for number in numbers)
        assert f"late-{model.id}" not in {each.name for each in rows.values()}


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_drains_gets_no_requests(api: Api) -> None:
    worker = await api.worker()
    model = await api.model("tiny")
    instances = [
        await _instance(api, model, worker["id"], state=S.RUNNING, port=port) for port in (40001, 40002)
    ]
    routing = api.services.routing

    def table() -> RoutingTable:
        return routing.table

    def targets() -> list[int]:
        route = table().routes.get("tiny")
        return [] if route is None else [each.instance_id for each in route.targets]

    await _until(lambda: targets() == instances)
    await api.admin.delete(f"/v2/model-instances/{instances[0]}")
    await _until(lambda: targets() == instances[1:])
    await api.admin.delete(f"/v2/models/{model['id']}")
    await _until(lambda: "tiny" not in table().routes)


async def test_the_log_of_the_start_before_is_asked_for_and_missed_in_one_line(api: Api) -> None:
    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = "previous=true" in seen.path and "tail=1" in seen.path
        head = b"HTTP/1.1 200 OK\r\n" if there else b"HTTP/1.1 404 Not Found\r\n"
        writer.write(head + b"content-length: 4\r\n\r\nold\n")
        await writer.drain()

    async with FakeEngine(script) as door:
        worker = await api.worker(port=door.port)
        instance = await _instance(api, await api.model(), worker["id"], state=S.RUNNING)
        url = f"/v2/model-instances/{instance}/logs?previous=true"

        assert (await api.admin.get(f"{url}&tail=1")).text == "old\n"
        missing = await api.admin.get(url)

    assert missing.status_code == 404
    assert "was not started more than once" in missing.json()["message"]
