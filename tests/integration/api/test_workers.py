from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpustack.schemas import InstanceState, ModelFileState
from support.api import DOOR_TOKEN, Api
from support.fake_engine import FakeEngine, Seen
from support.records import a_source


def _as(worker: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {worker['token']}"}


async def test_coming_back_gives_a_new_token_and_ends_the_old(api: Api) -> None:
    first = await api.worker()
    second = await api.worker()

    assert first["id"] == second["id"]
    assert (await api.anyone.get("/v2/models", headers=_as(first))).status_code == 401
    assert (await api.anyone.get("/v2/models", headers=_as(second))).status_code == 200


async def test_a_wrong_registration_token_lets_nobody_join(api: Api) -> None:
    answer = await api.anyone.post("/v2/workers", json={}, headers={"Authorization": "Bearer wrong"})

    assert answer.status_code == 401


async def test_heartbeats_reach_the_database_within_a_second_or_two(api: Api) -> None:
    worker = await api.worker()
    beat = {"status": {"memory": {"total": 42}}, "installed_versions": {"any": ["1.0"]}}

    answer = await api.anyone.post("/v2/worker-heartbeat", json=beat, headers=_as(worker))
    await api.services.heartbeats.flush()

    stored = (await api.admin.get(f"/v2/workers/{worker['id']}")).json()
    assert answer.status_code == 204
    assert answer.content == b""
    assert stored["status"]["memory"]["total"] == 42
    backend = (await api.admin.get("/v2/inference-backends")).json()["items"][0]
    assert backend["installed_versions"] == {"w": ["1.0"]}


async def test_a_deleted_worker_learns_so_by_its_heartbeat(api: Api) -> None:
    worker = await api.worker()
    assert (await api.admin.delete(f"/v2/workers/{worker['id']}")).status_code == 204

    answer = await api.anyone.post("/v2/worker-heartbeat", json={}, headers=_as(worker))

    assert answer.status_code == 404


async def test_gpus_are_listed_from_what_workers_report(api: Api) -> None:
    gpu = {"uuid": "g", "index": 0, "vendor": "nvidia", "name": "H200", "type": "cuda"}
    await api.worker(status={"gpu_devices": [gpu]})

    [found] = (await api.admin.get("/v2/gpu-devices")).json()["items"]

    assert found["id"] == "w:cuda:0"
    assert (await api.admin.get("/v2/gpu-devices/w:cuda:0")).json() == found


@pytest.mark.parametrize(
    ("state", "report", "status"),
    [
        (InstanceState.SCHEDULED, "initializing", 200),
        (InstanceState.STARTING, "running", 200),
        (InstanceState.PENDING, "running", 409),
        (InstanceState.RUNNING, "pending", 409),
        (InstanceState.RUNNING, "scheduled", 409),
    ],
)
async def test_a_report_has_to_be_a_possible_step(
    api: Api, state: InstanceState, report: str, status: int
) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=state)

    answer = await api.anyone.post(
        f"/v2/model-instances/{instance}/report", json={"state": report, "pid": 7}, headers=_as(worker)
    )

    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["state"] == report
        assert answer.json()["pid"] == 7


async def test_only_the_worker_that_has_an_instance_reports_on_it(api: Api) -> None:
    worker, other = await api.worker(), await api.worker("uuid-of-worker-2")
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.STARTING)
    path, body = f"/v2/model-instances/{instance}/report", {"state": "running"}

    assert (await api.anyone.post(path, json=body, headers=_as(other))).status_code == 409
    assert (await api.admin.post(path, json=body)).status_code == 403
    assert (await api.admin.delete(f"/v2/model-instances/{instance}")).status_code == 204
    assert (await api.anyone.post(path, json=body, headers=_as(worker))).status_code == 404


async def test_a_restart_is_counted(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.ERROR)

    answer = await api.anyone.post(
        f"/v2/model-instances/{instance}/report",
        json={"state": "initializing", "restarted": True},
        headers=_as(worker),
    )

    assert answer.json()["restart_count"] == 1
    assert answer.json()["last_restart_time"]


async def test_files_are_reported_by_their_worker(api: Api) -> None:
    worker, other = await api.worker(), await api.worker("uuid-of-worker-2")
    file = await api.services.store.model_files.request(worker["id"], a_source("/m.gguf"))
    report = {"request": file.request, "state": "error", "state_message": "not there"}
    path = f"/v2/model-files/{file.id}/report"

    assert (await api.anyone.post(path, json=report, headers=_as(other))).status_code == 409
    answer = await api.anyone.post(path, json=report, headers=_as(worker))
    assert answer.json()["state"] == ModelFileState.ERROR


async def _log(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nline 1\n")
    await writer.drain()
    if "follow=true" in seen.path:
        await reader.read(1)
    raise ConnectionError


async def test_a_log_comes_from_the_worker(api: Api) -> None:
    async with FakeEngine(_log) as door:
        worker = await api.worker(port=door.port)
        instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)

        answer = await api.admin.get(f"/v2/model-instances/{instance}/logs?tail=5")

    assert answer.text == "line 1\n"
    assert answer.headers["content-type"].startswith("text/plain")
    assert door.seen[0].path == f"/serveLogs/{instance}?tail=5&follow=false"
    assert door.seen[0].headers["authorization"] == f"Bearer {DOOR_TOKEN}"


async def test_a_followed_log_arrives_while_it_is_written(api: Api) -> None:
    async with FakeEngine(_log) as door:
        worker = await api.worker(port=door.port)
        instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)
        url = f"/v2/model-instances/{instance}/logs?follow=true"
        async with asyncio.timeout(5), api.admin.stream("GET", url) as answer:
            assert await anext(answer.aiter_text()) == "line 1\n"


async def test_a_log_of_a_worker_out_of_reach_is_a_clear_line(api: Api) -> None:
    worker = await api.worker(port=1)
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)

    answer = await api.admin.get(f"/v2/model-instances/{instance}/logs")

    assert answer.status_code == 502
    assert "cannot be reached" in answer.json()["message"]


async def test_a_worker_that_is_silent_on_its_log_is_a_clear_line(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_seen: Seen, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("gpustack.server.api.logs.HEAD_LIMIT", 0.05)
    async with FakeEngine(nothing) as door:
        worker = await api.worker(port=door.port)
        instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)

        answer = await api.admin.get(f"/v2/model-instances/{instance}/logs")

    assert answer.status_code == 503
    assert "worker w has not answered" in answer.json()["message"]


async def test_engines_are_found_at_the_present_address_of_their_worker(api: Api) -> None:
    worker = await api.worker(ip="10.9.9.9")
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING, port=4321)
    await api.routed("tiny", 1)
    assert api.services.routing.table.routes["tiny"].targets[0].host == "10.9.9.9"

    await api.worker(ip="127.0.0.1", name="renamed")

    async with asyncio.timeout(5):
        while api.services.routing.table.routes["tiny"].targets[0].host != "127.0.0.1":
            await asyncio.sleep(0.005)
    found = (await api.admin.get(f"/v2/model-instances/{instance}")).json()
    assert (found["worker_ip"], found["worker_name"]) == ("127.0.0.1", "renamed")


async def test_a_report_is_judged_by_the_row_at_the_moment_of_writing(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.UNREACHABLE)
    async with api.services.store.transaction() as tx:
        await tx.instances.update(instance, state=InstanceState.ERROR)
        report = asyncio.create_task(
            api.anyone.post(
                f"/v2/model-instances/{instance}/report", json={"state": "running"}, headers=_as(worker)
            )
        )
        await asyncio.sleep(0.2)

    assert (await report).status_code == 200
