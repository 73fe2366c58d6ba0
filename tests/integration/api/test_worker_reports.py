"""What workers say of instances, files and downloads, and what is asked of them: logs and engines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpustack.plugin.memory import Learned, MemoryKey
from gpustack.schemas import InstanceMemory, InstanceState, ModelFileState
from support.api import DOOR_TOKEN, Api, as_worker
from support.fake_engine import FakeEngine, Seen
from support.records import a_source


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
        f"/v2/model-instances/{instance}/report", json={"state": report, "pid": 7}, headers=as_worker(worker)
    )

    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["state"] == report
        assert answer.json()["pid"] == 7


async def test_only_the_worker_that_has_an_instance_reports_on_it(api: Api) -> None:
    worker, other = await api.worker(), await api.worker("uuid-of-worker-2")
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.STARTING)
    path, body = f"/v2/model-instances/{instance}/report", {"state": "running"}

    assert (await api.anyone.post(path, json=body, headers=as_worker(other))).status_code == 409
    assert (await api.admin.post(path, json=body)).status_code == 403
    assert (await api.admin.delete(f"/v2/model-instances/{instance}?force=true")).status_code == 204
    assert (await api.anyone.post(path, json=body, headers=as_worker(worker))).status_code == 404


async def test_a_restart_is_counted(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.ERROR)

    answer = await api.anyone.post(
        f"/v2/model-instances/{instance}/report",
        json={"state": "initializing", "restarted": True},
        headers=as_worker(worker),
    )

    assert answer.json()["restart_count"] == 1
    assert answer.json()["last_restart_time"]


async def test_a_restart_that_is_reported_twice_counts_once(api: Api) -> None:
    """The answer to the first was lost, so its worker sends it again, with what happened since."""
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)
    path = f"/v2/model-instances/{instance}/report"
    report = {"state": "initializing", "restarted": True, "restart_count": 1, "missed_error": "it was killed"}

    for state in ("initializing", "initializing", "running"):
        answer = await api.anyone.post(path, json={**report, "state": state}, headers=as_worker(worker))
        assert answer.json()["restart_count"] == 1

    events = (await api.admin.get(f"/v2/model-instance-events?instance_id={instance}")).json()["items"]
    happened = [each["what"] for each in events]
    assert happened[: happened.index("created")] == [
        "running",
        "initializing",
        "restarted",
        "error",
        "running",
    ]
    answer = await api.anyone.post(path, json={**report, "restart_count": 3}, headers=as_worker(worker))
    assert answer.json()["restart_count"] == 3


async def test_a_measured_peak_is_shown_and_remembered_for_its_kind(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)
    memory = InstanceMemory(estimated_ram=1000, architecture="llama", arguments="digest")
    await api.services.store.instances.update(instance, backend="fake", backend_version="1", memory=memory)
    path = f"/v2/model-instances/{instance}/report"
    kind = MemoryKey(architecture="llama", backend="fake", version="1", arguments="digest")

    async def report(ram: int) -> dict[str, Any]:
        body = {"state": "running", "peak": {"ram": ram, "vram": 7}}
        answer = await api.anyone.post(path, json=body, headers=as_worker(worker))
        return dict(answer.json()["memory"])

    shown = [(await report(ram))["peak_ram"] for ram in (900, 1200, 1100)]

    assert shown == [900, 1200, 1200]
    assert await api.services.store.measured.all() == {kind: Learned(ram=1200, vram=7, starts=1)}
    # It is placed anew, as the same kind, and takes less.
    await api.services.store.instances.update(instance, memory=memory)
    assert (await report(1000))["peak_ram"] == 1000
    assert await api.services.store.measured.all() == {kind: Learned(ram=1180, vram=7, starts=2)}


async def test_a_peak_that_makes_no_sense_is_refused(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)
    body = {"state": "running", "peak": {"ram": -1}}

    answer = await api.anyone.post(
        f"/v2/model-instances/{instance}/report", json=body, headers=as_worker(worker)
    )

    assert answer.status_code == 400
    assert "peak.ram" in answer.json()["message"]


async def test_an_error_that_could_not_be_told_in_time_is_told_with_the_restart(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING)
    report = {"state": "initializing", "restarted": True, "missed_error": "it was killed\nlast words"}

    await api.anyone.post(f"/v2/model-instances/{instance}/report", json=report, headers=as_worker(worker))

    events = (await api.admin.get(f"/v2/model-instance-events?instance_id={instance}")).json()["items"]
    assert [each["what"] for each in events[:3]] == ["initializing", "restarted", "error"]
    assert {each["message"] for each in events[1:3]} == {"it was killed\nlast words"}


async def test_files_are_reported_by_their_worker(api: Api) -> None:
    worker, other = await api.worker(), await api.worker("uuid-of-worker-2")
    file = await api.services.store.model_files.request(worker["id"], a_source("/m.gguf"))
    report = {"request": file.request, "state": "error", "state_message": "not there"}
    path = f"/v2/model-files/{file.id}/report"

    assert (await api.anyone.post(path, json=report, headers=as_worker(other))).status_code == 409
    answer = await api.anyone.post(path, json=report, headers=as_worker(worker))
    assert answer.json()["state"] == ModelFileState.ERROR


async def test_downloads_are_told_by_workers_alone(api: Api) -> None:
    worker, path = await api.worker(), "/v2/model-files/downloads"
    report = {"source": "huggingface", "huggingface_repo_id": "org/name", "state": "downloading", "size": 8}

    assert (await api.admin.post(path, json=report)).status_code == 403
    assert (await api.anyone.post(path, json=report)).status_code == 401
    made = (await api.anyone.post(path, json=report, headers=as_worker(worker))).json()
    more = {**report, "downloaded_size": 4, "download_rate": 2}
    assert (await api.anyone.post(path, json=more, headers=as_worker(worker))).json()["id"] == made["id"]
    (file,) = (await api.admin.get(f"/v2/model-files?worker_id={worker['id']}")).json()["items"]
    assert (file["downloaded_size"], file["size"], file["source"]) == (4, 8, "huggingface")
    refused = await api.anyone.post(path, json={**report, "size": -1}, headers=as_worker(worker))
    assert refused.status_code == 400
    assert "size" in refused.json()["message"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"source": "huggingface"}, "huggingface_repo_id is missing: organisation/name"),
        ({"source": "huggingface", "huggingface_repo_id": "a/b/c"}, "'a/b/c' is not organisation/name"),
        ({"source": "huggingface", "huggingface_repo_id": "a/b", "local_path": "/m"}, "local_path goes with"),
        (
            {"source": "huggingface", "huggingface_repo_id": "a/b", "huggingface_filename": "../x"},
            "leaves the repository",
        ),
        (
            {"source": "huggingface", "huggingface_repo_id": "a/b", "huggingface_revision": "a b"},
            "is no branch, tag or",
        ),
        ({"local_path": "/m", "huggingface_repo_id": "a/b"}, "huggingface_… fields go with source"),
    ],
)
async def test_a_source_that_cannot_be_is_refused_in_one_line(
    api: Api, fields: dict[str, str], line: str
) -> None:
    answer = await api.admin.post("/v2/models", json={"name": "m", **fields})
    assert answer.status_code in (400, 422)
    assert line in answer.json()["message"]
    assert "\n" not in answer.json()["message"]


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
    worker = await api.worker(ip="10.9.9.9", port=10150, home="there")
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING, port=4321)
    await api.routed("tiny", 1)
    assert api.services.routing.table.routes["tiny"].targets[0].host == "10.9.9.9"

    await api.worker(ip="127.0.0.1", port=10150, name="renamed", home="there")

    async with asyncio.timeout(5):
        while api.services.routing.table.routes["tiny"].targets[0].host != "127.0.0.1":
            await asyncio.sleep(0.005)
    found = (await api.admin.get(f"/v2/model-instances/{instance}")).json()
    assert (found["worker_ip"], found["worker_name"]) == ("127.0.0.1", "renamed")


@pytest.mark.parametrize(
    "who", [{"uuid": "uuid-of-worker-2"}, {"home": "elsewhere"}], ids=["another worker", "a copy's"]
)
async def test_only_the_built_in_workers_engines_are_asked_at_the_servers_loopback(
    api: Api, who: dict[str, str]
) -> None:
    """Another worker at the server's own address may be in another network: its ports are other programs' here."""
    worker = await api.worker(port=10150, **who)
    await api.instance(await api.model(), worker["id"], state=InstanceState.RUNNING, port=4321)
    await api.routed("tiny", 1)
    (target,) = api.services.routing.table.routes["tiny"].targets
    assert (target.host, target.port) == ("127.0.0.1", 10150)
    assert target.credential


async def test_a_report_is_judged_by_the_row_at_the_moment_of_writing(api: Api) -> None:
    worker = await api.worker()
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.UNREACHABLE)
    async with api.services.store.transaction() as tx:
        await tx.instances.update(instance, state=InstanceState.ERROR)
        report = asyncio.create_task(
            api.anyone.post(
                f"/v2/model-instances/{instance}/report", json={"state": "running"}, headers=as_worker(worker)
            )
        )
        await asyncio.sleep(0.2)

    assert (await report).status_code == 200
