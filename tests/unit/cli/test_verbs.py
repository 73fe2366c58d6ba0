"""events, scale, update, show, watching and completion against a scripted server."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli.rollout import Outcome, Rollout
from gpustack.schemas import Event, EventType
from support.fake_api import Asked, CutOff, FakeApi, Reply, a_model, an_instance, event, page
from support.running import COMMAND

Cli = Any
CREATED, UPDATED, DELETED, HEARTBEAT = 1, 2, 3, 5
_TIME = "2026-01-02T03:04:05Z"


def an_event(number: int, what: str, message: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "id": number, "model_id": 1, "model_name": "tiny", "instance_id": 11, "instance_name": "tiny-abcde",
        "worker_name": "box", "what": what, "message": message, "created_at": _TIME, "updated_at": _TIME, **fields,
    }  # fmt: skip


# events ------------------------------------------------------------------------------------------------


def script_events(api: FakeApi) -> None:
    error = an_event(2, "error", "the engine was killed\nlast words\x1b[2J")
    restarted = an_event(3, "restarted", "the engine was killed\nlast words", restart_count=1)
    newest_first = [restarted, error, an_event(1, "created")]
    api.on("GET", "/v2/model-instance-events", Reply(body=page(*newest_first)))


def test_what_happened_is_told_oldest_first_with_first_lines(cli: Cli, api: FakeApi) -> None:
    script_events(api)

    lines = cli("events", "tiny").out.splitlines()

    assert [line.split()[2:5] for line in lines] == [
        ["tiny-abcde", "box", "created"],
        ["tiny-abcde", "box", "error"],
        ["tiny-abcde", "box", "restarted"],
    ]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", lines[0])
    assert lines[2].endswith("restarted (1)  the engine was killed")
    assert api.asked[-1].query["perPage"] == "50"


def test_all_lines_are_shown_on_request_and_cannot_drive_the_terminal(cli: Cli, api: FakeApi) -> None:
    script_events(api)
    out = cli("events", "tiny", "--full").out
    assert "    last words[2J\n" in out
    assert "\x1b" not in out


def test_events_for_programs(cli: Cli, api: FakeApi) -> None:
    script_events(api)
    assert [each["id"] for each in json.loads(cli("events", "tiny", "--json").out)] == [1, 2, 3]


def test_an_instance_is_found_by_its_own_name(cli: Cli, api: FakeApi) -> None:
    def answer(asked: Asked) -> Reply:
        found = [an_event(1, "created")] if asked.query.get("instance_name") == "tiny-abcde" else []
        return Reply(body=page(*found))

    api.on("GET", "/v2/model-instance-events", answer)
    assert "created" in cli("events", "tiny-abcde").out


def test_nothing_is_known_of_a_model(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-instance-events", Reply(body=page()))
    api.on(
        "GET", "/v2/models", lambda asked: Reply(body=page(*([] if "search" in asked.query else [a_model()])))
    )

    ended = cli("events", "tinny")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "Error: there is no model 'tinny' (did you mean tiny?); see `gpustack ls`\n"


def test_following_goes_on_where_the_tail_ends(cli: Cli, api: FakeApi) -> None:
    def answer(asked: Asked) -> Reply:
        if "watch" not in asked.query:
            return Reply(body=page(an_event(1, "created")))
        if "since" in asked.query:
            return Reply(403, {"message": "enough"})
        return Reply(
            pieces=[
                event(CREATED, 1, an_event(1, "created")),
                event(CREATED, 2, an_event(2, "starting")),
                event(HEARTBEAT, 0, number=5),
                event(CREATED, 3, an_event(3, "running"), number=6),
            ]
        )

    api.on("GET", "/v2/model-instance-events", answer)

    ended = cli("events", "tiny", "-f", "--tail", "1")

    assert [line.split()[4] for line in ended.out.splitlines()] == ["starting", "running"]
    assert ended.err.endswith("Error: enough\n")
    followed = cli("events", "tiny", "-f", "--json").out.splitlines()
    assert [json.loads(line)["what"] for line in followed] == ["created", "starting", "running"]


# scale and update --------------------------------------------------------------------------------------


def script_change(api: FakeApi, *lines: bytes, **model: Any) -> None:
    """A model whose PATCH is echoed with another digest, and a watch that tells ``lines``."""
    before = a_model(spec_digest="old", env={"A": "1"}, backend_parameters=["--x"], **model)
    before["rollout"] = {"max_surge": 1, "max_unavailable": 0, "drain_seconds": 120}

    def changed(asked: Asked) -> Reply:
        same = {"replicas"} >= {name for name, value in asked.json.items() if before.get(name) != value}
        return Reply(
            body={**before, **asked.json, "env": {}, "rollout": {}, "spec_digest": "old" if same else "new"}
        )

    def instances(asked: Asked) -> Reply:
        return Reply(
            pieces=itertools.chain(lines, api.hold()) if "watch" in asked.query else None, body=page()
        )

    api.on("GET", "/v2/models", Reply(body=page(before)))
    api.on("GET", "/v2/models/1", Reply(body=before))
    api.on("PATCH", "/v2/models/1", changed)
    api.on("GET", "/v2/model-instances", instances)


def running(number: int = 11, digest: str = "old", **fields: Any) -> bytes:
    data = an_instance(
        id=number, name=f"tiny-{number}", state="running", spec_digest=digest, worker_id=1, **fields
    )
    return event(CREATED, number, data)


def sent(api: FakeApi) -> dict[str, Any]:
    body: dict[str, Any] = api.requests("PATCH", "/v2/models/1")[-1].json
    return body


def test_scaling_asks_for_nothing_else_and_waits(cli: Cli, api: FakeApi) -> None:
    script_change(api, running(11), running(12), event(HEARTBEAT, 0))

    ended = cli("scale", "tiny", "2")

    assert ended.status == 0
    assert ended.out.startswith("Scaling tiny from 1 to 2.\n")
    assert ended.out.endswith("tiny runs 2 of 2.\n")
    assert sent(api) == {"replicas": 2}


def test_scaling_to_nothing_waits_for_the_last_copy(cli: Cli, api: FakeApi) -> None:
    script_change(api, running(11), event(HEARTBEAT, 0), running(11, draining_since=_TIME))
    ended = cli("scale", "tiny", "0")
    assert "requests in flight are finished first" in ended.out
    assert ended.out.endswith("tiny runs no copy any more.\n")


@pytest.mark.parametrize("number", ["-1", "1001", "two", "1.5"])
def test_an_absurd_number_of_copies_is_a_wrong_usage(cli: Cli, api: FakeApi, number: str) -> None:
    ended = cli("scale", "tiny", number)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert number in ended.err
    assert not api.asked


def test_only_what_is_named_changes(cli: Cli, api: FakeApi) -> None:
    script_change(api)

    ended = cli(
        "update", "tiny", "--no-wait", "-p", "--ctx-size=1", "--env", "B=2=3", "--unset-env", "A",
        "--backend-version", "1.2", "--max-surge", "2",
    )  # fmt: skip

    assert ended.status == 0
    assert "exchanged one after the other" in ended.out
    assert sent(api) == {
        "backend_parameters": ["--ctx-size=1"], "env": {"A": None, "B": "2=3"}, "backend_version": "1.2",
        "rollout": {"max_surge": 2},
    }  # fmt: skip
    cli("update", "tiny", "--no-wait", "--parameter", "")
    assert sent(api) == {"backend_parameters": []}


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "nothing is to change"),
        (["--replicas", "-1"], 2, "--replicas"),
        (["--env", "novalue"], 2, "KEY=VALUE"),
        (["--env", "1A=x"], 2, "'1A' is not an environment variable"),
        (["--unset-env", "NOPE"], 1, "has no such variable"),
        (["--backend-version", "../x"], 2, "backend-version"),
        (["--max-surge", "0", "--max-unavailable", "0"], 2, "nothing could ever be exchanged"),
    ],
)
def test_what_cannot_be_is_one_line(cli: Cli, api: FakeApi, args: list[str], status: int, said: str) -> None:
    script_change(api)
    ended = cli("update", "tiny", *args)
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1)
    assert said in ended.err
    assert not api.requests("PATCH", "/v2/models/1")


@pytest.mark.parametrize(
    "verb", [["scale", "tony", "2"], ["update", "tony", "--replicas", "2"], ["show", "tony"], ["rm", "tony"]]
)
def test_a_name_that_is_none_brings_the_nearest(cli: Cli, api: FakeApi, verb: list[str]) -> None:
    api.on(
        "GET", "/v2/models", lambda asked: Reply(body=page(*([] if "search" in asked.query else [a_model()])))
    )
    api.on("GET", "/v2/model-instances", Reply(body=page()))
    ended = cli(*verb)
    assert ended.status == 1
    assert "there is no model 'tony' (did you mean tiny?)" in ended.err


def told(*events: tuple[int, int, dict[str, Any]], digest: str = "new", replicas: int = 1) -> Rollout:
    rollout = Rollout(replicas=replicas, digest=digest, whole=True)
    for kind, number, data in events:
        rollout.take(Event(type=EventType(kind), id=number, data=data), 0.0)
    return rollout


def one(number: int, digest: str, state: str = "running", **fields: Any) -> tuple[int, int, dict[str, Any]]:
    placed = {"worker_id": 1} if state != "pending" else {}
    return CREATED, number, an_instance(id=number, state=state, spec_digest=digest, **placed, **fields)


def test_a_change_is_done_when_only_new_copies_take_requests() -> None:
    assert told(one(1, "old")).outcome(1.0) is None
    assert told(one(1, "old"), one(2, "new")).outcome(1.0) is None
    drains = one(1, "old", draining_since=_TIME)
    assert told(drains, one(2, "new", "starting")).outcome(1.0) is None
    ended = told(drains, one(2, "new")).outcome(1.0)
    assert ended is not None
    assert ended[0] is Outcome.RUNNING


def test_room_that_the_old_copies_will_make_is_waited_for() -> None:
    waiting = one(2, "new", "pending", state_message="no room")
    assert told(one(1, "old"), waiting).outcome(60.0) is None
    ended = told(waiting).outcome(60.0)
    assert ended is not None
    assert ended[0] is Outcome.QUEUED


def test_the_errors_of_old_copies_do_not_matter() -> None:
    assert told(one(1, "old", "error", state_message="no"), one(2, "new", "starting")).outcome(1.0) is None
    ended = told(one(1, "old"), one(2, "new", "error", state_message="no")).outcome(1.0)
    assert ended is not None
    assert ended[0] is Outcome.FAILED


@pytest.mark.parametrize("replicas", [0, 1])
def test_failed_copies_that_are_too_many_are_no_failure(replicas: int) -> None:
    broken = one(2, "new", "error", state_message="no")
    fine = [one(1, "new")] * replicas
    assert told(*fine, broken, replicas=replicas).outcome(60.0) is None
    rollout = told(*fine, broken, one(3, "new", "error", state_message="no"), replicas=replicas + 1)
    ended = rollout.outcome(60.0)
    assert ended is not None
    assert ended[0] is Outcome.FAILED


# show --------------------------------------------------------------------------------------------------


def test_everything_about_a_model(cli: Cli, api: FakeApi) -> None:
    model = a_model(
        categories=["embedding"], env={"TOKEN": "secret"}, backend_parameters=["--a b"], spec_digest="new"
    )
    waits = an_instance(state="pending", state_message="no worker has room\nbox: 3 GiB are missing")
    old = an_instance(
        id=12, name="tiny-old", state="running", worker_id=1, worker_name="box", spec_digest="old"
    )
    api.on("GET", "/v2/models", Reply(body=page(model)))
    api.on("GET", "/v2/model-instances", Reply(body=page(waits, old)))
    api.on(
        "GET",
        "/v2/model-instance-events",
        Reply(body=page(an_event(2, "error", "why"), an_event(1, "created"))),
    )

    out = cli("show", "tiny").out

    assert "'--a b'" in out
    assert "TOKEN" in out
    assert "secret" not in out
    assert "running (to be exchanged)" in out
    assert "tiny-abcde is pending: no worker has room\n    box: 3 GiB are missing\n" in out
    assert out.index("created") < out.index("why")
    assert f"curl {api.url}/v1/embeddings -H" in out
    document = json.loads(cli("show", "tiny", "--json").out)
    assert (document["env"], len(document["instances"])) == ({"TOKEN": "secret"}, 2)


def test_a_server_without_history_shows_the_rest(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(replicas=0))))
    api.on("GET", "/v2/model-instances", Reply(body=page()))
    ended = cli("show", "tiny")
    assert ended.status == 0
    assert "none is wanted" in ended.err


# watching ----------------------------------------------------------------------------------------------


def test_in_a_pipe_each_change_is_a_line(cli: Cli, api: FakeApi) -> None:
    def answer(asked: Asked) -> Reply:
        if "since" in asked.query:
            return Reply(403, {"message": "enough"})
        loading = an_instance(state="starting", state_message="loading")
        return Reply(
            pieces=[
                event(CREATED, 11, loading),
                event(HEARTBEAT, 0, number=5),
                event(UPDATED, 11, loading, number=6),
                event(UPDATED, 11, an_instance(state="running", worker_name="box"), number=7),
                event(DELETED, 11, number=8),
                event(DELETED, 99, number=9),
            ]
        )

    api.on("GET", "/v2/model-instances", answer)

    ended = cli("ps", "--watch")

    assert [line[10:] for line in ended.out.splitlines()] == [
        "tiny-abcde  starting  -  loading",
        "tiny-abcde  running  box",
        "tiny-abcde  removed",
    ]
    assert ended.status == 1
    documents = [json.loads(line) for line in cli("ps", "-w", "--json").out.splitlines()]
    assert [each["event"] for each in documents] == ["created", "updated", "updated", "deleted", "deleted"]


def test_a_server_that_stays_away_ends_the_lines(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpustack.cli.live._PATIENCE", 0.2)

    def answer(asked: Asked) -> Reply:
        def pieces() -> Any:
            yield event(CREATED, 1, a_model(ready_replicas=1))
            raise CutOff

        return Reply(503, {"message": "closing"}) if len(api.asked) > 1 else Reply(pieces=pieces())

    api.on("GET", "/v2/models", answer)

    ended = cli("ls", "--watch")

    assert ended.out.endswith("tiny  1/1 ready\n")
    assert ended.status == 1
    assert ended.err.splitlines()[-1].startswith("Error: closing")


@pytest.mark.parametrize(
    "verb",
    [
        ["events", "x"],
        ["show", "x"],
        ["scale", "x", "1"],
        ["update", "x", "--replicas", "1"],
        ["ps", "-w"],
        ["ls", "-w"],
    ],
)
def test_without_a_server_each_says_so(cli: Cli, verb: list[str]) -> None:
    ended = cli(*verb)
    assert (ended.status, ended.err.count("\n")) == (3, 1)
    assert "no GPUStack runs" in ended.err


# completion --------------------------------------------------------------------------------------------


def completed(*words: str, last: str = "", **env: str) -> tuple[list[str], float]:
    """Return what a shell is offered for the last word, and how long that took."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPUSTACK_")}
    asked = {
        "_GPUSTACK_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["gpustack", *words, last]),
        "COMP_CWORD": str(len(words) + 1),
    }
    began = time.monotonic()
    done = subprocess.run(
        [COMMAND], env={**clean, **asked, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.split()], time.monotonic() - began


def test_commands_and_options_are_completed(tmp_path: Path) -> None:
    assert completed(last="sc")[0] == ["scale"]
    assert {"install", "list", "remove"} <= set(completed("backends")[0])
    assert "--backend-version" in completed("update", "x", last="--back")[0]


def test_names_come_from_the_server_and_never_trouble(api: FakeApi, tmp_path: Path) -> None:
    api.on(
        "GET",
        "/v2/models",
        Reply(body=page(a_model(), a_model(id=2, name="tiny-two"), a_model(id=3, name="x"))),
    )
    env = {"GPUSTACK_SERVER": api.url, "GPUSTACK_API_KEY": "key"}
    assert completed("rm", last="ti", **env)[0] == ["tiny", "tiny-two"]
    assert completed("rm", "tiny", last="ti", **env)[0] == ["tiny-two"]

    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance(name="tiny-abcde"))))
    assert completed("logs", last="tiny-a", **env)[0] == ["tiny-abcde"]

    api.on("GET", "/v2/models", Reply(401, {"message": "no"}))
    assert completed("logs", last="ti", **env)[0] == []
    assert completed("rm", last="ti", **env)[0] == []
    api.on("GET", "/v2/models", Reply(pieces=api.hold()))
    assert completed("rm", last="ti", **env)[0] == []
    here = {"GPUSTACK_DATA_DIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert completed("rm", last="ti", **here)[0] == []


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no-files")]
)
def test_a_script_for_each_shell(cli: Cli, shell: str, mark: str) -> None:
    assert mark in cli("completion", shell).out


def test_another_shell_is_a_wrong_usage(cli: Cli) -> None:
    ended = cli("completion", "csh")
    assert (ended.status, ended.err.count("\n")) == (2, 1)


# backends ----------------------------------------------------------------------------------------------


def a_receipt(bin_dir: Path, version: str) -> None:
    """Write what the installer writes about an engine that was proven."""
    from gpustack.plugin import PipxPackage
    from gpustack.worker.artifacts.receipts import Receipt, write_receipt
    from gpustack.worker.artifacts.recipe import Recipe

    bin_dir.mkdir(parents=True, exist_ok=True)
    link = bin_dir / f"gpustack-llama-server_{version}"
    link.symlink_to(sys.executable)
    package = PipxPackage(package="p", version=version, command="gpustack-llama-server")
    write_receipt(link, Receipt.of(link, Recipe(backend="llama-cpp", package=package), disk=3 << 20))


def test_backends_are_listed_before_the_first_start(cli: Cli, tmp_path: Path) -> None:
    a_receipt(tmp_path / "data" / "bin", "1.2.3")
    for words in (["backends"], ["backends", "list"]):
        ended = cli(*words)
        assert ended.status == 0
        assert "1.2.3" in ended.out
        assert str(tmp_path / "data" / "bin") in ended.err
    found = json.loads(cli("backends", "list", "--json", "--bin-dir", str(tmp_path / "else")).out)
    [document] = [each for each in found if each["backend_name"] == "llama-cpp"]
    assert document["installed_here"] == []
    assert document["bin_dir"] == str(tmp_path / "else")


def test_the_workers_engines_are_listed_too(cli: Cli, api: FakeApi) -> None:
    backend = {
        "id": 1, "backend_name": "llama-cpp", "default_version": "2", "plugin": "p", "distribution": "d",
        "distribution_version": "1", "installed_versions": {"box": ["1", "2"]},
    }  # fmt: skip
    api.on("GET", "/v2/inference-backends", Reply(body=page(backend)))
    assert "1, 2 on box" in cli("backends").out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["install", "lama-cpp"], 1, "did you mean llama-cpp?"),
        (["install", "llama-cpp@"], 2, "BACKEND@VERSION"),
        (["install", "llama-cpp@../../x"], 2, "is no version"),
        (["install", "llama-cpp", "--pipx-path", "/nope"], 2, "--pipx-path"),
        (["install"], 2, "BACKEND"),
        (["remove", "llama-cpp"], 2, "which version?"),
        (["remove", "llama-cpp@1.2.3"], 1, "1.2.3 is not installed here"),
        (["remove", "nope@1"], 1, "there is no backend 'nope'"),
    ],
)
def test_engines_that_cannot_be_had_are_one_line(cli: Cli, words: list[str], status: int, said: str) -> None:
    ended = cli("backends", *words)
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1)
    assert said in ended.err


def test_an_engine_that_is_not_installed_runs_as_nothing(cli: Cli, tmp_path: Path) -> None:
    """The data directory itself is no environment, whatever runs from below it."""
    from gpustack.cli.processes import _runs

    program = tmp_path / "bin" / "gpustack-llama-server_9.9.9"
    inside = tmp_path / "sleeper"
    inside.symlink_to("/bin/sleep")
    with subprocess.Popen([str(inside), "60"]) as process:
        try:
            assert not _runs(process.pid, program)
        finally:
            process.kill()
