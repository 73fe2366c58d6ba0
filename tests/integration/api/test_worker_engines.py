"""Engines on workers: asked for by administrators, answered by the worker, listed with size and last use."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from support.api import Api

PATH = "/v2/worker-engines"


def _as(worker: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {worker['token']}"}


async def a_worker(api: Api, number: int = 2, **fields: Any) -> dict[str, Any]:
    fields = {"name": f"w{number}", "catalogue": {"backends": ["any"]}, **fields}
    worker: dict[str, Any] = await api.worker(f"uuid-of-worker-{number}", **fields)
    return worker


async def rows(api: Api, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.admin.get(PATH, params=params)).json()["items"]
    return found


async def ask(api: Api, **body: Any) -> Any:
    return await api.admin.post(PATH, json={"backend": "any", **body})


async def test_an_engine_is_asked_for_told_of_and_taken_away(api: Api) -> None:
    worker = await a_worker(api)
    asked = await ask(api, worker_id=worker["id"], packages=["NumPy >=2", "a==1"])
    assert asked.status_code == 201
    (row,) = asked.json()["items"]
    assert (row["version"], row["state"], row["request"]) == ("1.0", "pending", 1)
    assert row["packages"] == ["a==1", "numpy>=2"]

    path = f"{PATH}/{row['id']}/report"
    for state, message in (("installing", "downloading a"), ("installed", "")):
        body = {"request": 1, "state": state, "state_message": message, "disk": 700}
        assert (await api.anyone.post(path, json=body, headers=_as(worker))).status_code == 200
    (row,) = await rows(api, worker_id=worker["id"])
    assert (row["state"], row["disk"]) == ("installed", 700)
    assert row["last_used_at"] is not None

    removed = await api.admin.delete(f"{PATH}/{row['id']}")
    assert (removed.status_code, removed.json()["state"], removed.json()["request"]) == (202, "removing", 2)
    late = {"request": 1, "state": "installed"}
    assert (await api.anyone.post(path, json=late, headers=_as(worker))).status_code == 409
    gone = {"request": 2, "state": "removing", "gone": True}
    assert (await api.anyone.post(path, json=gone, headers=_as(worker))).status_code == 200
    assert await rows(api) == []


async def test_all_workers_that_have_the_backend_are_asked(api: Api) -> None:
    one, two = await a_worker(api, 2), await a_worker(api, 3)
    await a_worker(api, 4, catalogue={"backends": ["other"]})

    for request in (1, 2):
        found = (await ask(api, version="2.0")).json()["items"]
        assert sorted(row["worker_id"] for row in found) == [one["id"], two["id"]]
        assert {(row["state"], row["request"]) for row in found} == {("pending", request)}

    # What is on a worker goes with it.
    await api.admin.delete(f"/v2/workers/{one['id']}")
    assert [row["worker_id"] for row in await rows(api)] == [two["id"]]


async def test_what_cannot_be_is_refused_in_one_line(api: Api) -> None:
    worker = await a_worker(api)
    for body, status, said in (
        (
            {"backend": "custom"},
            400,
            "backend custom installs nothing: its models bring a command or an image",
        ),
        (
            {"worker_id": worker["id"], "backend": "nope", "version": "1"},
            400,
            "has no backend 'nope'; it has: any",
        ),
        ({"worker_id": 999}, 404, "there is no worker 999"),
        ({"backend": "nope"}, 400, "version is missing: the server has no backend 'nope'"),
        ({"backend": "nope", "version": "1"}, 400, "no worker has a backend 'nope'"),
        ({"version": "../x"}, 400, "version"),
        ({"packages": ["--index-url=//evil"]}, 400, "is no package"),
        ({"packages": ["a @ file:///etc"]}, 400, "names a place that is not on every worker"),
    ):
        answer = await ask(api, **body)
        assert answer.status_code in (status, 422), answer.text
        assert said in answer.json()["message"]
        assert "\n" not in answer.json()["message"]
    assert await rows(api) == []


async def test_a_worker_tells_what_it_has(api: Api) -> None:
    worker, other = await a_worker(api, 2), await a_worker(api, 3)
    (asked,) = (await ask(api, version="3.0", worker_id=worker["id"])).json()["items"]

    async def tell(*engines: dict[str, Any]) -> None:
        answer = await api.anyone.post(
            f"{PATH}/inventory", json={"engines": list(engines)}, headers=_as(worker)
        )
        assert answer.status_code == 204, answer.text

    held = {"backend": "any", "version": "1.0", "packages": [], "disk": 500, "unused_seconds": 7200}
    await tell(held, {**held, "version": "2.0", "packages": ["a==1"]})

    found = {row["version"]: row for row in await rows(api, worker_id=worker["id"])}
    assert {each: row["state"] for each, row in found.items()} == {
        "1.0": "installed",
        "2.0": "installed",
        "3.0": "pending",
    }
    used = datetime.fromisoformat(found["1.0"]["last_used_at"])
    assert timedelta(hours=1.9) < datetime.now(UTC) - used < timedelta(hours=2.1)
    number = found["1.0"]["id"]

    await tell({**held, "disk": 600})

    found = {row["version"]: row for row in await rows(api, worker_id=worker["id"])}
    assert {each: row["disk"] for each, row in found.items()} == {"1.0": 600, "3.0": 0}
    assert (found["1.0"]["id"], found["3.0"]["id"]) == (number, asked["id"])
    assert await rows(api, worker_id=other["id"]) == []


async def test_each_worker_sees_and_tells_its_own(api: Api) -> None:
    one, two = await a_worker(api, 2), await a_worker(api, 3)
    (row,) = (await ask(api, worker_id=one["id"])).json()["items"]
    report = {"request": 1, "state": "installed"}

    assert (await api.anyone.get(PATH, headers=_as(two))).json()["items"] == []
    assert (await api.anyone.get(f"{PATH}/{row['id']}", headers=_as(two))).status_code == 404
    assert (
        await api.anyone.post(f"{PATH}/{row['id']}/report", json=report, headers=_as(two))
    ).status_code == 409
    assert (await api.admin.post(f"{PATH}/{row['id']}/report", json=report)).status_code == 403
    for method, path in (("POST", PATH), ("DELETE", f"{PATH}/{row['id']}")):
        answer = await api.anyone.request(method, path, json={"backend": "any"}, headers=_as(one))
        assert answer.status_code == 403


async def test_what_models_run_from_is_wanted(api: Api) -> None:
    worker = await a_worker(api)
    common = {"local_path": "/m.gguf", "replicas": 0}
    for body in (
        {"name": "chosen", "backend": "any", "backend_version": "9", "backend_packages": ["B>=1"], **common},
        {"name": "any-backend", "env": {"GPUSTACK_BACKEND_DEPS": "a>=1,<2,c"}, **common},
    ):
        assert (await api.admin.post("/v2/models", json=body)).status_code == 201

    answer = await api.anyone.get(f"{PATH}/wanted", headers=_as(worker))

    assert answer.json()["items"] == [
        {"backend": "any", "version": "1.0", "packages": ["a<2,>=1", "c"]},
        {"backend": "any", "version": "9", "packages": ["b>=1"]},
    ]


async def test_packages_of_a_model_are_looked_at_and_part_of_what_it_is(api: Api) -> None:
    body = {"name": "m", "local_path": "/m.gguf", "replicas": 0}
    for wrong in (
        {"backend_packages": ["no package!"]},
        {"env": {"GPUSTACK_BACKEND_DEPS": "a==1,-r file"}},
    ):
        answer = await api.admin.post("/v2/models", json={**body, **wrong})
        assert answer.status_code in (400, 422)
        assert "is no package" in json.dumps(answer.json())
    made = (await api.admin.post("/v2/models", json=body)).json()
    patched = await api.admin.patch(f"/v2/models/{made['id']}", json={"backend_packages": ["a==1"]})

    assert patched.json()["backend_packages"] == ["a==1"]
    assert patched.json()["spec_digest"] != made["spec_digest"]
