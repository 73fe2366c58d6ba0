"""``gpustack backends … --worker``: asked through the API, followed by its watch, told in lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpustack.schemas import engine_key
from support.fake_api import FakeApi, Reply, event, page

NOW = "2026-01-01T00:00:00Z"
PATH = "/v2/worker-engines"


def a_row(number: int = 1, worker: int = 7, state: str = "pending", **fields: Any) -> dict[str, Any]:
    name: dict[str, Any] = {"backend": "vllm", "version": "0.32.0", "packages": []}
    return {
        "id": number,
        "worker_id": worker,
        "state": state,
        "request": 1,
        "disk": 0,
        "state_message": "",
        "created_at": NOW,
        "updated_at": NOW,
        "last_used_at": None,
        "engine_key": engine_key(**name),
        **name,
        **fields,
    }


@pytest.fixture
def workers(api: FakeApi) -> FakeApi:
    described = [
        {
            "id": number, "name": name, "ip": "10.0.0.1", "cluster_id": 1, "worker_uuid": "u", "version": "1",
            "state": "ready", "created_at": NOW, "updated_at": NOW,
        }
        for number, name in ((7, "box"), (8, "shed"))
    ]  # fmt: skip
    api.on("GET", "/v2/workers", Reply(body=page(*described)))
    return api


def test_a_worker_installs_and_each_step_is_told(cli: Any, workers: FakeApi) -> None:
    workers.on("POST", PATH, Reply(201, page(a_row())))
    steps = [
        event(1, 1, a_row()),
        event(5, 0),
        event(
            2,
            1,
            a_row(state="installing", state_message="installing vllm 0.32.0: downloading torch (800 MB)"),
        ),
        event(2, 1, a_row(state="installed", disk=5 << 30)),
    ]
    workers.on("GET", PATH, Reply(pieces=steps))

    ended = cli("backends", "install", "vllm==0.32.0", "--worker", "box")

    assert (ended.status, ended.out) == (0, "vllm==0.32.0 is installed on box.\n")
    assert "box  installing: installing vllm 0.32.0: downloading torch (800 MB)" in ended.err
    (asked,) = workers.requests("POST", PATH)
    assert asked.json == {"backend": "vllm", "version": "0.32.0", "packages": [], "worker_id": 7}


def test_all_workers_install_and_one_cannot(cli: Any, workers: FakeApi) -> None:
    workers.on("POST", PATH, Reply(201, page(a_row(1, 7), a_row(2, 8))))
    said = "the package index has no vllm==0.32.0 for this machine and Python; see /log"
    steps = [
        event(1, 1, a_row(1, 7, "installed")),
        event(1, 2, a_row(2, 8)),
        event(5, 0),
        event(2, 2, a_row(2, 8, "error", state_message=said)),
    ]
    workers.on("GET", PATH, Reply(pieces=steps))

    ended = cli("backends", "install", "vllm@0.32.0", "--worker", "all", "--package", "a==1")

    assert (ended.status, ended.out) == (1, "vllm==0.32.0 is installed on box.\n")
    assert f"shed: {said}" in ended.err
    assert workers.requests("POST", PATH)[0].json["worker_id"] is None
    assert workers.requests("POST", PATH)[0].json["packages"] == ["a==1"]


def test_who_does_not_wait_is_answered_at_once(cli: Any, workers: FakeApi) -> None:
    workers.on("POST", PATH, Reply(201, page(a_row())))

    ended = cli("backends", "install", "vllm==0.32.0", "--worker", "box", "--no-wait")

    assert ended.out == "box installs vllm==0.32.0; `gpustack backends list` shows how far it is.\n"


def test_removed_from_a_worker_or_in_use_there(cli: Any, workers: FakeApi) -> None:
    rows = [a_row(1, 7, "installed"), a_row(2, 8, "installed"), a_row(3, 8, "installed", version="1")]
    in_use = "vllm_0.32.0 is in use by process 12; remove the models that run from it"
    watched = [
        event(1, 1, a_row(1, 7, "removing", request=2)),
        event(1, 2, a_row(2, 8, "removing", request=2)),
        event(5, 0),
        event(3, 1, a_row(1, 7, "removing", request=2)),
        event(2, 2, a_row(2, 8, "installed", request=2, state_message=in_use)),
    ]
    workers.on(
        "GET",
        PATH,
        lambda asked: Reply(pieces=watched) if "watch" in asked.query else Reply(body=page(*rows)),
    )
    for number, worker in ((1, 7), (2, 8)):
        gone = a_row(number, worker, "removing", request=2)
        workers.on("DELETE", f"{PATH}/{number}", Reply(202, gone))

    ended = cli("backends", "remove", "vllm==0.32.0", "--worker", "all")

    assert (ended.status, ended.out) == (1, "Removed vllm==0.32.0 from box.\n")
    assert f"shed: {in_use}" in ended.err


def test_what_workers_have_is_listed(cli: Any, workers: FakeApi) -> None:
    backend = {
        "id": 1, "backend_name": "vllm", "default_version": "2", "plugin": "p", "distribution": "d",
        "distribution_version": "1", "installed_versions": {"box": ["0.32.0"]},
    }  # fmt: skip
    workers.on("GET", "/v2/inference-backends", Reply(body=page(backend)))
    rows = [
        a_row(1, 7, "installed", disk=3 << 30),
        a_row(2, 8, "installing", state_message="downloading torch"),
    ]
    workers.on("GET", PATH, Reply(body=page(*rows)))

    lines = [line.split() for line in cli("backends", "list").out.splitlines()]

    assert ["vllm==0.32.0", "box", "installed", "3.0", "GiB", "-"] in lines
    assert ["vllm==0.32.0", "shed", "installing", "-", "-", "downloading", "torch"] in lines
    documents = json.loads(cli("backends", "--json").out)[0]["engines"]
    assert [(each["worker_name"], each["state"]) for each in documents] == [
        ("box", "installed"),
        ("shed", "installing"),
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["install", "vllm==1", "--worker", "bix"], 1, "there is no worker 'bix' (did you mean box?)"),
        (["install", "vllm==1", "--worker", "box", "--package", "-r x"], 2, "is no package"),
        (["install", "vllm==", "--worker", "box"], 2, "is not BACKEND, BACKEND==VERSION or BACKEND@VERSION"),
        (["remove", "vllm", "--worker", "box"], 2, "which version? name one as vllm==VERSION"),
        (["remove", "vllm==9", "--worker", "box"], 1, "vllm 9 is not on box"),
        (["install", "vllm==1", "--server", "http://x"], 2, "--server http://x is for --worker NAME"),
    ],
)
def test_wrong_words_are_one_line(
    cli: Any, workers: FakeApi, words: list[str], status: int, said: str
) -> None:
    workers.on("GET", PATH, Reply(body=page(a_row(1, 7, "installed"))))
    ended = cli("backends", *words)
    assert (ended.status, ended.out) == (status, "")
    assert said in ended.err
    assert ended.err.count("\n") <= 4
