"""``gpustack workers``, and the command that makes another machine one."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.process import identify
from support.fake_api import FakeApi, Reply, an_instance, page

Cli = Any
TOKEN = "0123456789abcdef"


def a_worker(**fields: Any) -> dict[str, Any]:
    stamps = dict.fromkeys(("created_at", "updated_at", "heartbeat_time"), "2026-01-02T03:04:05Z")
    return {
        "id": 1,
        "name": "box",
        "ip": "10.0.0.2",
        "port": 10150,
        "cluster_id": 1,
        "worker_uuid": "uuid-of-worker-1",
        "version": "1.2.3",
        "state": "ready",
        "installed_versions": {"llama-cpp": ["0.3.1", "0.3.2"], "vllm": []},
        **stamps,
        **fields,
    }


@pytest.fixture
def here(cli: Cli, tmp_path: Path) -> Path:
    """A data directory whose GPUStack runs: this very process."""
    us = identify(os.getpid())
    assert us is not None
    data_dir = tmp_path / "data"
    (data_dir / "run").mkdir(parents=True)
    (data_dir / "run" / "cli_token").write_text("for the command line")
    (data_dir / "token").write_text(TOKEN)
    runs(data_dir)
    return data_dir


def runs(data_dir: Path, url: str = "http://10.0.0.1:9080", **fields: Any) -> None:
    us = identify(os.getpid())
    assert us is not None
    state = {"pid": us.pid, "started": us.started, "url": url, "data_dir": str(data_dir), "log_dir": "/x"}
    child = {"pid": None, "state": "ready"}
    (data_dir / "run" / "supervisor.json").write_text(
        json.dumps({**state, "children": {"server": child}, **fields})
    )


def test_labels_are_set_and_taken_away(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker(labels={"os": "linux", "zone": "a", "old": "x"}))))
    api.on("PUT", "/v2/workers/1", Reply(body=a_worker(labels={"os": "linux", "zone": "b"})))

    assert cli("workers", "label", "box").out.split() == ["old=x", "os=linux", "zone=a"]
    assert cli("workers", "label", "box", "zone=b", "old-").out.split() == ["os=linux", "zone=b"]
    (changed,) = api.requests("PUT", "/v2/workers/1")
    assert changed.json == {"labels": {"os": "linux", "zone": "b"}}


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["zone"], 2, "'zone' is neither KEY=VALUE nor KEY-"),
        (["=a"], 2, "'=a' is neither"),
        (["-"], 2, "'-' is neither"),
        (["os-"], 1, "os is a label that the worker gives itself"),
        (["pluto-"], 1, "worker box has no label 'pluto' to take away"),
    ],
)
def test_labels_that_cannot_be(cli: Cli, api: FakeApi, words: list[str], code: int, line: str) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker(labels={"os": "linux"}))))

    ended = cli("workers", "label", "box", *words)

    assert ended.status == code
    assert line in ended.err


def test_where_a_worker_is_and_what_it_has(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker())))

    said = cli("workers").out

    for part in ("box", "ready", "10.0.0.2:10150", "1.2.3", "llama-cpp 0.3.1 0.3.2"):
        assert part in said
    assert "vllm" not in said
    assert cli("workers", "list").out == said
    [whole] = json.loads(cli("workers", "--json").out)
    assert whole["installed_versions"] == {"llama-cpp": ["0.3.1", "0.3.2"], "vllm": []}


def test_nobody_has_joined(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/workers", Reply(body=page()))

    assert "gpustack workers join-command" in cli("workers").err


def test_the_command_for_another_machine_keeps_the_token_out_of_its_flags(cli: Cli, here: Path) -> None:
    ended = cli("workers", "join-command")

    assert ended.status == 0
    assert shlex.split(ended.out) == [
        f"GPUSTACK_TOKEN={TOKEN}",
        "gpustack",
        "start",
        "--server-url",
        "http://10.0.0.1:9080",
    ]
    assert "--token-file" in ended.err
    assert str(here / "token") in ended.err


def test_programs_get_the_parts(cli: Cli, here: Path) -> None:
    said = json.loads(cli("workers", "join-command", "--json").out)

    assert (said["server_url"], said["token"]) == ("http://10.0.0.1:9080", TOKEN)
    assert said["command"].endswith("gpustack start --server-url http://10.0.0.1:9080")


def test_from_elsewhere_the_token_is_not_known(cli: Cli, api: FakeApi) -> None:
    ended = cli("workers", "join-command")

    assert ended.out == f"gpustack start --server-url {api.url} --token-file token\n"
    assert "on the server's machine" in ended.err


def test_an_address_that_reaches_nobody_is_said(cli: Cli, here: Path) -> None:
    runs(here, "http://127.0.0.1:9080")

    assert "--advertise-address" in cli("workers", "join-command").err


def test_a_workers_own_machine_has_no_token_to_give(cli: Cli, here: Path) -> None:
    runs(here, "http://10.0.0.9", children={"worker": {"pid": None, "state": "ready"}})

    ended = cli("workers", "join-command")

    assert ended.status == 1
    assert "worker of http://10.0.0.9" in ended.err
    assert ended.out == ""


def test_a_token_that_is_not_there_is_one_line(cli: Cli, here: Path) -> None:
    (here / "token").unlink()

    ended = cli("workers", "join-command")

    assert ended.status == 1
    assert str(here / "token") in ended.err
    assert ended.err.count("\n") == 1


def test_nothing_runs(cli: Cli) -> None:
    assert cli("workers", "join-command").status == 3


def test_a_worker_with_copies_is_not_removed_by_a_slip(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker(), a_worker(id=2, name="spare"))))
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance(worker_id=1, state="running"))))
    for number in (1, 2):
        api.on("DELETE", f"/v2/workers/{number}", Reply(204))

    ended = cli("workers", "remove", "box")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "runs tiny-abcde; --force" in ended.err
    assert not api.requests("DELETE", "/v2/workers/1")

    assert cli("workers", "remove", "box", "--force").status == 0
    assert cli("workers", "remove", "spare").status == 0


def test_what_is_remarkable_of_all_workers_is_said_first(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker())))
    line = "6 of 10 workers fell silent within 60 s"
    api.on("GET", "/v2/fleet", Reply(body={"workers": {"ready": 10}, "notices": [line]}))

    assert line in cli("workers").err
    assert json.loads(cli("workers", "--json").out)[0]["name"] == "box"


@pytest.mark.parametrize(("flag", "on"), [("--on", True), ("--off", False)])
def test_a_worker_is_taken_out_of_service_and_back(cli: Cli, api: FakeApi, flag: str, on: bool) -> None:
    api.on("GET", "/v2/workers", Reply(body=page(a_worker(id=7))))
    api.on("PUT", "/v2/workers/7", Reply(body=a_worker(id=7, state="maintenance" if on else "ready")))
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance(name="tiny-1", worker_id=7))))

    said = cli("workers", "maintenance", "box", flag)

    assert said.status == 0
    [asked] = api.requests("PUT", "/v2/workers/7")
    assert asked.json == {"maintenance": on}
    assert "in maintenance" in said.out if on else "in service again" in said.out
    assert ("tiny-1 serve" in said.err) == on
    assert "no worker 'bax'" in cli("workers", "maintenance", "bax", flag).err
    assert cli("workers", "maintenance", "box").status == 2
