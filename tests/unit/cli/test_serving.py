"""The options that say how a model is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any

OPTIONS = [
    "--min-replicas", "0", "--max-replicas", "3", "--scale-outstanding", "2.5", "--idle-seconds", "60", "--priority", "7",
    "--between-timeout", "9", "--queue-slots", "4", "--queue-requests", "10",
]  # fmt: skip
FIELDS = {
    "min_replicas": 0,
    "max_replicas": 3,
    "priority": 7,
    "autoscaling": {"outstanding": 2.5, "idle_seconds": 60.0},
    "timeouts": {"between": 9.0},
    "queue": {"slots": 4, "requests": 10},
}


def sent(api: FakeApi, method: str) -> dict[str, Any]:
    (body,) = [json.loads(each.body) for each in api.asked if each.method == method]
    return dict(body)


def held(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether all of ``wanted`` is in ``found``."""
    return all(
        held(found[name], value) if isinstance(value, dict) else found[name] == value
        for name, value in wanted.items()
    )


def test_deploy_sends_them(cli: Cli, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    api.on("POST", "/v2/models", Reply(201, a_model()))
    cli("deploy", str(tmp_path / "tiny.gguf"), "--no-wait", *OPTIONS)
    assert held(sent(api, "POST"), FIELDS)


def test_update_sends_them_and_nothing_else(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    api.on("PATCH", "/v2/models/1", Reply(body=a_model()))
    cli("update", "tiny", "--no-wait", *OPTIONS)
    assert sent(api, "PATCH") == FIELDS


def test_where_it_may_run_is_sent(cli: Cli, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    api.on("POST", "/v2/models", Reply(201, a_model()))
    api.on("GET", "/v2/models", Reply(body=page(a_model(worker_selector={"old": "x"}))))
    api.on("PATCH", "/v2/models/1", Reply(body=a_model()))

    where = ["--worker-selector", "zone=a", "--strategy", "binpack"]
    cli("deploy", str(tmp_path / "tiny.gguf"), "--no-wait", *where)
    cli("update", "tiny", "--no-wait", *where, "--worker-selector", "old-")

    wanted = {"worker_selector": {"zone": "a"}, "placement_strategy": "binpack"}
    assert held(sent(api, "POST"), wanted)
    assert sent(api, "PATCH") == wanted | {"worker_selector": {"zone": "a", "old": None}}


@pytest.mark.parametrize("wrong", ["zone", "=a", "-", "zone-"])
def test_a_selector_that_is_none_is_told(cli: Cli, api: FakeApi, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    ended = cli("deploy", str(tmp_path / "tiny.gguf"), "--worker-selector", wrong)
    assert ended.status == 2
    assert f"--worker-selector {wrong!r}" in ended.err
    assert api.requests("POST", "/v2/models") == []


def test_update_gives_the_number_back_to_people(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(min_replicas=0, max_replicas=3))))
    api.on("PATCH", "/v2/models/1", Reply(body=a_model()))
    cli("update", "tiny", "--no-wait", "--fixed-replicas", "--replicas", "2")
    assert sent(api, "PATCH") == {"replicas": 2, "min_replicas": None, "max_replicas": None}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--min-replicas", "3", "--max-replicas", "2"], "max_replicas 2 is below min_replicas 3"),
        (["--max-replicas", "2", "--replicas", "4"], "replicas 4 is not between min_replicas 1 and max_replicas 2"),
        (["--connect-timeout", "1000"], "timeouts.connect: Input should be less than or equal to 60"),
        (["--scale-outstanding", "nan"], "'nan' is not a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(
    cli: Cli, api: FakeApi, tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    answer = cli("deploy", str(tmp_path / "tiny.gguf"), *arguments)
    assert answer.status == 2
    assert line in answer.err
    assert not [each for each in api.asked if each.method == "POST"]


def test_both_at_once_is_refused(cli: Cli) -> None:
    answer = cli("update", "tiny", "--fixed-replicas", "--min-replicas", "1")
    assert (answer.status, "does not go with" in answer.err) == (2, True)
