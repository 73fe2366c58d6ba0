"""Workers join, come back, are seen and are taken out of service."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gpustack.schemas import InstanceState, WorkerState
from support.api import DOOR_TOKEN, Api, as_worker
from support.records import a_source


async def test_coming_back_gives_a_new_token_and_ends_the_old(api: Api) -> None:
    first = await api.worker()
    second = await api.worker()

    assert first["id"] == second["id"]
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(first))).status_code == 401
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(second))).status_code == 200


def _registration(uuid: str = "uuid-of-worker-1", **fields: Any) -> dict[str, Any]:
    body = {"name": "w", "ip": "127.0.0.1", "door_token": DOOR_TOKEN, "worker_uuid": uuid, "version": "1"}
    return {**body, **fields}


async def test_a_worker_renews_with_its_own_token_and_keeps_it(api: Api) -> None:
    first = await api.worker(home="here")

    for _ in range(2):  # the first answer may have been lost
        body = _registration(home="here", name="renamed")
        answer = await api.anyone.post("/v2/workers", json=body, headers=as_worker(first))

    assert answer.status_code == 201
    assert answer.json() == {"id": first["id"], "name": "renamed", "token": first["token"], "session": 0}
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(first))).status_code == 200


async def test_a_workers_own_token_registers_no_other_worker(api: Api) -> None:
    first, second = await api.worker(), await api.worker("uuid-of-worker-2")

    for uuid in ("uuid-of-worker-2", "uuid-of-nobody"):
        answer = await api.anyone.post("/v2/workers", json=_registration(uuid), headers=as_worker(first))
        assert answer.status_code == 403
        assert "its own registration and no other" in answer.json()["message"]
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(second))).status_code == 200


async def test_the_token_of_a_deleted_worker_registers_nobody(api: Api) -> None:
    worker = await api.worker()
    await api.admin.delete(f"/v2/workers/{worker['id']}")

    answer = await api.anyone.post("/v2/workers", json=_registration(), headers=as_worker(worker))

    assert answer.status_code == 401
    assert "register again" in answer.json()["message"]


async def test_a_copy_of_a_worker_that_lives_is_refused(api: Api) -> None:
    first = await api.worker(home="here", hostname="box", ip="127.0.0.1")
    token = {"Authorization": f"Bearer {(api.data_dir / 'token').read_text()}"}

    for shown in (token, as_worker(first)):
        body = _registration(home="there", hostname="copy", ip="10.0.0.2")
        answer = await api.anyone.post("/v2/workers", json=body, headers=shown)
        assert answer.status_code == 409
        assert "w is alive on box (127.0.0.1)" in answer.json()["message"]
        assert "copy (10.0.0.2)" in answer.json()["message"]
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(first))).status_code == 200


async def test_the_registration_token_does_not_take_a_living_worker_over(api: Api) -> None:
    worker = await api.worker(hostname="box")
    token = {"Authorization": f"Bearer {(api.data_dir / 'token').read_text()}"}

    for fields in ({}, {"home": "there"}):
        fields["door_token"] = "e" * 32
        answer = await api.anyone.post("/v2/workers", json=_registration(**fields), headers=token)
        assert answer.status_code == 409
        assert "w is alive on box" in answer.json()["message"]

    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(worker))).status_code == 200
    assert (await api.worker())["id"] == worker["id"], "the answer to its registration may have been lost"


async def test_a_worker_with_a_home_is_not_taken_over_by_one_that_tells_none(api: Api) -> None:
    worker = await api.worker(home="here")
    token = {"Authorization": f"Bearer {(api.data_dir / 'token').read_text()}"}

    answer = await api.anyone.post("/v2/workers", json=_registration(), headers=token)

    assert answer.status_code == 409
    assert (await api.anyone.get("/v2/model-instances", headers=as_worker(worker))).status_code == 200


async def test_a_worker_sees_what_is_on_it_and_nothing_else(api: Api) -> None:
    mine, other = await api.worker(), await api.worker("uuid-of-worker-2")
    seen, unseen = await api.model("seen", env={"KEY": "secret"}), await api.model("unseen")
    here = await api.instance(seen, mine["id"], "seen-1", draining_since=datetime.now(UTC))
    there = await api.instance(unseen, other["id"], "unseen-1")
    files = [await api.services.store.model_files.request(w["id"], a_source("/m")) for w in (mine, other)]

    async def status(path: str) -> int:
        return (await api.anyone.get(f"/v2/{path}", headers=as_worker(mine))).status_code

    assert await status(f"models/{seen['id']}") == 200
    assert await status(f"models/{unseen['id']}") == 404
    assert [await status(f"model-instances/{each}") for each in (here, there)] == [200, 404]
    assert [await status(f"model-files/{each.id}") for each in files] == [200, 404]
    for path in ("model-instances", "model-files"):
        assert await status(f"{path}?worker_id={other['id']}") == 403
        found = (await api.anyone.get(f"/v2/{path}", headers=as_worker(mine))).json()["items"]
        assert {each["worker_id"] for each in found} == {mine["id"]}
    for path in ("models", "workers", f"workers/{other['id']}", "model-instance-events"):
        assert await status(path) == 403, path


async def test_a_worker_may_move_once_the_old_place_is_silent(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await api.worker(home="here")
    monkeypatch.setattr("gpustack.db.repositories.workers._ALIVE", timedelta(0))

    body = _registration(home="there")
    own = await api.anyone.post("/v2/workers", json=body, headers=as_worker(first))
    moved = await api.worker(home="there")

    assert own.status_code == 401
    assert "another place" in own.json()["message"]
    assert moved["id"] == first["id"]
    beat = await api.anyone.post("/v2/worker-heartbeat", json={}, headers=as_worker(first))
    assert beat.status_code == 404


@pytest.mark.parametrize("version", ["2.3.4", "1.4.0rc1", "2.5", "1.3.9"])
async def test_versions_too_far_apart_are_refused_with_a_line_on_both_sides(
    api: Api, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(api.services.config, version="1.2.3" if version[0] == "2" else "0.2.0")
    token = {"Authorization": f"Bearer {(api.data_dir / 'token').read_text()}"}
    object.__setattr__(api.services, "config", config)

    answer = await api.anyone.post("/v2/workers", json=_registration(version=version), headers=token)

    assert answer.status_code == 400
    assert config.version in answer.json()["message"]
    assert version in answer.json()["message"]
    assert answer.json()["message"] in caplog.text


async def test_a_server_that_became_too_different_tells_workers_by_their_heartbeat(api: Api) -> None:
    object.__setattr__(api.services, "config", replace(api.services.config, version="1.2.3"))
    worker = await api.worker(version="1.3.0")
    assert (
        await api.anyone.post("/v2/worker-heartbeat", json={}, headers=as_worker(worker))
    ).status_code == 204

    object.__setattr__(api.services, "config", replace(api.services.config, version="2.0.0"))
    answer = await api.anyone.post("/v2/worker-heartbeat", json={}, headers=as_worker(worker))

    assert answer.status_code == 400
    assert "2.0.0" in answer.json()["message"]


async def test_what_a_newer_worker_says_more_is_left_out(api: Api) -> None:
    worker = await api.worker(newer_field={"a": 1}, status={"memory": {"total": 5, "kind": "new"}, "npu": []})
    instance = await api.instance(await api.model(), worker["id"], state=InstanceState.STARTING)
    file = await api.services.store.model_files.request(worker["id"], a_source("/m.gguf"))

    beat = {"status": {"memory": {"total": 6}, "newer": 1}, "newer": 1}
    report = {"state": "running", "port": 40000, "newer": 1}
    file_report = {"request": file.request, "state": "error", "state_message": "no", "newer": 1}
    answers = [
        await api.anyone.post("/v2/worker-heartbeat", json=beat, headers=as_worker(worker)),
        await api.anyone.post(
            f"/v2/model-instances/{instance}/report", json=report, headers=as_worker(worker)
        ),
        await api.anyone.post(
            f"/v2/model-files/{file.id}/report", json=file_report, headers=as_worker(worker)
        ),
    ]

    assert [answer.status_code for answer in answers] == [204, 200, 200]
    assert "newer" not in answers[1].json()


async def test_an_older_worker_need_not_say_what_is_new(api: Api) -> None:
    worker = await api.worker(home="here")
    old = {name: value for name, value in _registration().items() if name != "home"}

    answer = await api.anyone.post("/v2/workers", json=old, headers=as_worker(worker))

    assert answer.status_code == 201


async def test_a_second_worker_of_a_name_gets_a_number_and_keeps_it(api: Api) -> None:
    names = [(await api.worker(f"uuid-of-worker-{number}", name="box"))["name"] for number in range(3)]
    again = [(await api.worker(f"uuid-of-worker-{number}", name="box"))["name"] for number in range(3)]

    assert names == ["box", "box-1", "box-2"]
    assert again == names


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ip", ""),
        ("ip", "x" * 65),
        ("port", 70000),
        ("port", -1),
        ("hostname", "h" * 256),
        ("version", "1" * 65),
    ],
)
async def test_a_registration_that_fits_no_column_is_refused(api: Api, field: str, value: Any) -> None:
    token = {"Authorization": f"Bearer {(api.data_dir / 'token').read_text()}"}

    answer = await api.anyone.post("/v2/workers", json=_registration(**{field: value}), headers=token)

    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"{field}: ")


async def test_a_wrong_registration_token_lets_nobody_join(api: Api) -> None:
    answer = await api.anyone.post("/v2/workers", json={}, headers={"Authorization": "Bearer wrong"})

    assert answer.status_code == 401


async def test_heartbeats_reach_the_database_within_a_second_or_two(api: Api) -> None:
    worker = await api.worker()
    beat = {"status": {"memory": {"total": 42}}, "installed_versions": {"any": ["1.0"]}}

    answer = await api.anyone.post("/v2/worker-heartbeat", json=beat, headers=as_worker(worker))
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

    answer = await api.anyone.post("/v2/worker-heartbeat", json={}, headers=as_worker(worker))

    assert answer.status_code == 404


async def test_gpus_are_listed_from_what_workers_report(api: Api) -> None:
    gpu = {
        "uuid": "g",
        "index": 0,
        "vendor": "nvidia",
        "name": "H200",
        "type": "cuda",
        "memory": {"total": 5, "used": 3, "others": 1},
        "core": {"total": 7, "utilization_rate": 1.5},
        "power": 700.0,
        "power_used": 70.0,
        "arch_family": "Hopper",
        "numa_node": 1,
        "topology": ["node0", "bridge1"],
        "link_group": "nvlink0",
        "processes": [{"pid": 5, "memory": 2, "instance_id": 1}],
        "faults": ["it is hot"],
    }
    await api.worker(status={"gpu_devices": [gpu]})

    [found] = (await api.admin.get("/v2/gpu-devices")).json()["items"]

    assert found["id"] == "w:cuda:0"
    assert {name: found[name] for name in gpu if name != "memory"} == {
        name: value for name, value in gpu.items() if name != "memory"
    }
    assert found["memory"]["others"] == 1
    assert (await api.admin.get("/v2/gpu-devices/w:cuda:0")).json() == found


OWN = {"os": "linux", "arch": "x86_64", "worker-name": "w"}


async def test_a_change_of_labels_leaves_the_workers_own(api: Api) -> None:
    worker = await api.worker(home="here", labels=OWN)
    path = f"/v2/workers/{worker['id']}"

    changed = await api.admin.put(path, json={"labels": {"zone": "a"}})
    refused = await api.admin.put(path, json={"labels": {"os": "plan9"}})

    assert changed.json()["labels"] == {**OWN, "zone": "a"}
    assert refused.status_code == 400
    assert "label os is 'linux'" in refused.json()["message"]
    assert (await api.admin.put(path, json={"labels": {}})).json()["labels"] == OWN


async def test_labels_that_were_added_outlive_a_restart_of_the_worker(api: Api) -> None:
    worker = await api.worker(home="here", labels=OWN)
    path = f"/v2/workers/{worker['id']}"
    await api.admin.put(path, json={"labels": {"zone": "a"}})

    await api.worker(home="here", labels={**OWN, "os": "darwin"})

    assert (await api.admin.get(path)).json()["labels"] == {**OWN, "os": "darwin", "zone": "a"}


async def test_maintenance_outlives_silence_restarts_and_a_change_of_labels(api: Api) -> None:
    worker = await api.worker(home="here")
    path, store = f"/v2/workers/{worker['id']}", api.services.store.workers

    async def state() -> tuple[str, bool]:
        found = (await api.admin.get(path)).json()
        return found["state"], found["maintenance"]

    assert (await api.admin.put(path, json={"maintenance": True})).json()["state"] == "maintenance"
    assert (await api.admin.put(path, json={"labels": {"zone": "a"}})).json()["labels"] == {"zone": "a"}
    assert await state() == ("maintenance", True)
    await store.set_state(worker["id"], WorkerState.UNREACHABLE, "silent")
    assert await state() == ("unreachable", True)
    await store.set_state(worker["id"], WorkerState.READY)
    assert await state() == ("maintenance", True)
    await api.worker(home="here")
    assert await state() == ("maintenance", True)
    assert (await api.admin.put(path, json={"maintenance": False})).json()["state"] == "ready"
    found = (await api.admin.get("/v2/fleet")).json()
    assert found == {
        "workers": {"not_ready": 0, "ready": 1, "unreachable": 0, "maintenance": 0},
        "notices": [],
    }
