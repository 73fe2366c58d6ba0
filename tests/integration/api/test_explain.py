"""Why instances are where they are, as the API tells it, and the records of decisions that it hands out."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from gpustack.schemas import FactsDocument, InstanceState, ModelFileReport, ModelFileState
from gpustack.server import telling
from support.api import Api
from support.reconcile import an_instance


async def test_a_model_without_workers_says_so(api: Api) -> None:
    model = await api.model("tiny")
    instance = await api.instance(model, None)

    answer = await api.admin.get(f"/v2/models/{model['id']}/explain")

    assert answer.status_code == 200
    (one,) = answer.json()["instances"]
    assert (one["instance_id"], one["outcome"]) == (instance, "refused")
    assert "no worker has joined yet" in one["summary"]


async def test_a_chosen_gpu_that_is_not_there_is_named(api: Api) -> None:
    await api.worker()
    model = await api.model("tiny", gpu_selector={"gpu_ids": ["gone:cuda:0", "w:cuda:0"]})
    await api.instance(model, None)

    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]

    assert one["reasons"] == [
        "the chosen GPU gone:cuda:0 is on a worker that has not joined; `gpustack gpus` lists what there is",
        "the chosen GPU w:cuda:0 is not there; `gpustack gpus` lists what there is",
    ]


async def test_an_instance_without_a_record_is_told_by_its_row(api: Api) -> None:
    model, worker = await api.model("tiny"), await api.worker()
    claim = {"ram": 3 << 30, "vram": {}}
    await api.instance(
        model, worker["id"], state=InstanceState.RUNNING, backend="any", computed_resource_claim=claim
    )

    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]

    assert one["summary"] == "runs on worker w, on the processor"
    assert one["seats"] == [{"worker_id": worker["id"], "worker_name": "w", "ram_mib": 3072, "vram_mib": {}}]
    assert one["reasons"] == ["the record of its decision is not kept"]


async def test_an_instance_that_is_lost_from_sight_is_told_when_it_is_replaced(api: Api) -> None:
    model, worker = await api.model("tiny"), await api.worker()
    await api.instance(model, worker["id"], state=InstanceState.UNREACHABLE, backend="any")

    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]

    assert re.match(
        r"it is placed elsewhere at \d\d:\d\d:\d\d UTC, in (60|59) s, unless its worker is heard before",
        one["reasons"][0],
    )


def test_when_it_is_overdue_it_is_told_what_it_waits_for() -> None:
    instance = an_instance(1, InstanceState.UNREACHABLE, worker_id=1)
    later = instance.state_since + timedelta(seconds=90)

    assert telling.replacement(instance, 90.5, later).endswith("may still be serving there")
    assert telling.replacement(instance, 80, later).startswith("its time of 80 s is over")


async def test_an_instance_whose_files_are_read_is_not_decided_yet(api: Api) -> None:
    model = await api.model("tiny")
    await api.instance(model, None, state=InstanceState.ANALYZING, state_message="reading the files")

    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]

    assert (one["outcome"], one["summary"]) == ("not-decided", "reading the files")


async def test_explanations_and_records_are_for_people_and_not_for_workers(api: Api) -> None:
    model, worker = await api.model("tiny"), await api.worker()
    headers = {"Authorization": f"Bearer {worker['token']}"}
    for path in (f"/v2/models/{model['id']}/explain", "/v2/decisions"):
        assert (await api.anyone.get(path)).status_code == 401
        assert (await api.anyone.get(path, headers=headers)).status_code == 403


async def test_a_model_that_is_none_is_not_found(api: Api) -> None:
    answer = await api.admin.get("/v2/models/99/explain")
    assert answer.status_code == 404


async def test_parameters_that_it_does_not_have_are_refused(api: Api) -> None:
    answer = await api.admin.get("/v2/decisions?limit=-1&page=abc")
    assert answer.status_code == 400
    assert "'limit': this answers all recorded decisions" in answer.json()["message"]


async def test_a_worker_in_maintenance_is_told_as_that(api: Api) -> None:
    model, worker = await api.model("tiny"), await api.worker()
    await api.admin.put(f"/v2/workers/{worker['id']}", json={"maintenance": True})
    await api.instance(model, None)

    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]

    assert "is not ready: in maintenance" in str(one)


async def test_without_decisions_there_is_nothing_to_hand_out(api: Api) -> None:
    answer = await api.admin.get("/v2/decisions")
    assert (answer.status_code, answer.content) == (200, b"")


ROOMY = {
    "status": {"memory": {"total": 64 << 30, "used": 0}},
    "labels": {"zone": "here"},
    "catalogue": {"backends": ["any"]},
}
FACTS = FactsDocument(format="gguf", path="/m.gguf", weight_bytes=1 << 30, categories=("llm",))


async def _read(api: Api, model: dict[str, Any], worker: dict[str, Any]) -> None:
    """Have the files of ``model`` be known on ``worker``, as after it was served there once."""
    store = api.services.store
    asked = await store.model_files.request(worker["id"], await store.models.get(model["id"]))
    report = ModelFileReport(request=asked.request, state=ModelFileState.READY, facts=FACTS, size=1 << 30)
    await store.model_files.report(asked.id, report)


async def _remedies(api: Api, model: dict[str, Any]) -> list[tuple[str, list[str]]]:
    (one,) = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"]
    assert one["outcome"] == "refused"
    return [(each["what"], [seat["worker_name"] for seat in each["seats"]]) for each in one["remedies"]]


@pytest.mark.parametrize("read", [True, False], ids=["files-read", "files-unread"])
async def test_a_selector_that_matches_nothing_is_told_with_what_would_help(api: Api, read: bool) -> None:
    worker = await api.worker(**ROOMY)
    model = await api.model("tiny", worker_selector={"zone": "pluto"})
    await api.instance(model, None)
    if read:
        await _read(api, model, worker)

    found = await _remedies(api, model)

    if read:
        assert found == [
            ("with the label zone=pluto on worker w", ["w"]),
            ("without its worker selector", ["w"]),
        ]
    else:
        assert found == [
            ("with the label zone=pluto on worker w; its files must be read there first", []),
            ("without its worker selector; its files must be read first", []),
        ]


@pytest.mark.parametrize("read", [True, False], ids=["files-read", "files-unread"])
async def test_a_worker_in_maintenance_is_told_as_the_remedy(api: Api, read: bool) -> None:
    worker = await api.worker(name="vm", **ROOMY)
    model = await api.model("tiny")
    await api.instance(model, None)
    if read:
        await _read(api, model, worker)
    changed = await api.admin.put(f"/v2/workers/{worker['id']}", json={"maintenance": True})
    assert changed.status_code == 200, changed.text

    found = await _remedies(api, model)

    if read:
        assert found == [("once worker vm is ready", ["vm"])]
    else:
        assert found == [("once worker vm is ready; its files must be read there first", [])]


async def test_what_would_not_fit_there_either_is_no_remedy(api: Api) -> None:
    worker = await api.worker(**{**ROOMY, "system_reserved": {"ram": 64 << 30}})
    model = await api.model("tiny", worker_selector={"zone": "pluto"})
    await api.instance(model, None)
    await _read(api, model, worker)

    assert await _remedies(api, model) == []


async def test_a_backend_that_was_not_named_is_told_with_why(api: Api) -> None:
    worker = await api.worker(**ROOMY)
    model, named = await api.model("tiny"), await api.model("tinier", backend="any")
    for each in (model, named):
        await _read(api, each, worker)
        name = f"{each['name']}-1"
        await api.instance(each, worker["id"], name=name, state=InstanceState.RUNNING, backend="any")

    told = [
        (await api.admin.get(f"/v2/models/{each['id']}/explain")).json()["instances"][0]["reasons"]
        for each in (model, named)
    ]

    assert told[0][0].startswith("chosen any")
    assert told[1][0] == "backend any: the model names it"
    assert not any("chosen" in each for each in told[1])


async def test_what_failed_is_told_with_the_reason(api: Api) -> None:
    worker = await api.worker(**ROOMY)
    model = await api.model("tiny", backend="any")
    await _read(api, model, worker)
    why = "the engine exited with status 2: no such flag; trying again in 10 s"
    await api.instance(
        model, worker["id"], state=InstanceState.ERROR, backend="any", state_message=f"{why}\nlast lines"
    )

    told = (await api.admin.get(f"/v2/models/{model['id']}/explain")).json()["instances"][0]

    assert told["summary"].startswith("failed on worker w")
    assert told["summary"].endswith(f": {why}")
