"""Deploying: each phase is shown, and the end says what is and what to do."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli.rollout import Rollout
from gpustack.cli.sources import default_name
from gpustack.kit.process import identify
from gpustack.schemas import Event, EventType
from support.fake_api import Asked, FakeApi, Reply, a_model, after, an_instance, event, fake_api, page

Cli = Any
CREATED, UPDATED, DELETED = 1, 2, 3
_END = event(5, 0, number=1)
RETRY = "the engine exited with status 2 after {lived} s while loading the model; trying again {when}\nlast lines of its log:\n{said}"
NOW = RETRY.format(lived=0.4, when="now", said="12:00:01 bad flag")
LATER = RETRY.format(lived=0.5, when="in 10 s", said="12:00:02 bad flag")
NETWORK = "pipx cannot reach the package index; trying again now"


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def script(api: FakeApi, *steps: bytes, model: dict[str, Any] | None = None) -> None:
    """Let the server create a model whose instances do ``steps``."""
    model = model or a_model()
    api.on("POST", "/v2/models", Reply(201, model))
    api.on("GET", "/v2/models/1", Reply(body={**model, "ready_replicas": 1}))
    api.on("GET", "/v2/model-instances", lambda asked: _instances(api, asked, steps))


def _instances(api: FakeApi, asked: Asked, steps: tuple[bytes, ...]) -> Reply:
    if asked.query.get("watch") != "true":
        return Reply(body=page(an_instance(state="running")))
    assert asked.query["model_id"] == "1"
    return Reply(pieces=itertools.chain([_END], _slowly(steps), api.hold()))


def _slowly(steps: tuple[bytes, ...]) -> Iterator[bytes]:
    for step in steps:
        yield from after(0.01, step)


def step(state: str, message: str = "", *, kind: int = UPDATED, **fields: Any) -> bytes:
    return event(kind, 11, an_instance(state=state, state_message=message, **fields), number=2)


def test_each_phase_is_shown_and_the_next_command(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(
        api,
        step("pending", kind=CREATED),
        step("analyzing", "reading the model's files"),
        step("scheduled"),
        step("initializing", "installing"),
        step("starting"),
        step("running"),
        model=a_model(categories=["llm"]),
    )

    ended = cli("deploy", str(model_file))

    assert (ended.status, ended.err) == (0, "")
    shown = [line.split()[3].rstrip(":") for line in ended.out.splitlines() if " s  tiny-" in line]
    assert shown == ["pending", "analyzing", "scheduled", "initializing", "starting", "running"]
    assert "gpustack chat tiny" in ended.out


def test_what_is_sent(cli: Cli, api: FakeApi, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_file.parent)
    script(api)

    ended = cli(
        "deploy", "./tiny.gguf", "--name", "other", "--replicas", "2", "--backend", "llama-cpp",
        "--backend-version", "1.2", "-p", "--ctx-size=512", "-p", "--verbose", "--env", "A=b=c", "--no-wait",
    )  # fmt: skip

    assert ended.status == 0
    (asked,) = api.requests("POST", "/v2/models")
    assert asked.json == {
        "name": "other", "local_path": str(model_file), "replicas": 2, "backend": "llama-cpp",
        "backend_version": "1.2", "backend_parameters": ["--ctx-size=512", "--verbose"], "env": {"A": "b=c"},
    }  # fmt: skip
    assert not api.requests("GET", "/v2/model-instances")


def test_an_embedding_model_names_its_own_request(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, step("running", kind=CREATED), model=a_model(categories=["embedding"]))
    assert f"curl {api.url}/v1/embeddings" in cli("deploy", str(model_file)).out


def test_all_replicas_are_waited_for(cli: Cli, api: FakeApi, model_file: Path) -> None:
    second = an_instance(id=12, name="tiny-zzzzz", state="running")
    script(
        api,
        step("running", kind=CREATED),
        event(CREATED, 12, {**second, "state": "starting"}, number=3),
        event(UPDATED, 12, second, number=4),
        model=a_model(replicas=2),
    )

    ended = cli("deploy", str(model_file), "--replicas", "2")

    assert ended.status == 0
    assert "tiny-zzzzz  running" in ended.out


def test_an_error_that_is_final_ends_with_the_engines_last_lines(
    cli: Cli, api: FakeApi, model_file: Path
) -> None:
    message = "the engine exited with status 2\nlast lines of its log:\nbad flag; trying again never helps"
    script(api, step("pending", kind=CREATED), step("error", message))

    ended = cli("deploy", str(model_file))

    assert ended.status == 1
    assert "bad flag" in ended.err
    assert "gpustack logs tiny-abcde" in ended.err
    assert "goes on trying" not in ended.err


def test_the_error_is_said_once(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, step("initializing", kind=CREATED), step("error", "there is no version 9 of llama-cpp"))

    ended = cli("deploy", str(model_file))

    assert (ended.out + ended.err).count("no version 9") == 1
    assert "no version 9" in ended.err
    assert "gpustack logs" not in ended.err  # no engine has run yet, and there is no log


def test_a_copy_that_drains_is_shown_as_one() -> None:
    rollout = Rollout(replicas=1)
    for state, since, shown in (
        ("running", None, "running"),
        ("running", "2026-01-02T03:04:05Z", "draining"),
    ):
        data = an_instance(state=state, draining_since=since)
        told = rollout.take(Event(type=EventType.UPDATED, id=11, data=data, number=1), 0.0)
        assert told is not None
        assert told.state == shown


@pytest.mark.parametrize("source", ["", " ", "hf:", "hf:a/b/c/d"])
def test_what_is_no_source_is_a_wrong_usage(cli: Cli, api: FakeApi, source: str) -> None:
    ended = cli("deploy", source)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert api.asked == []


def test_what_is_too_long_is_quoted_in_part(cli: Cli, api: FakeApi, model_file: Path) -> None:
    for args in (
        [str(model_file), "--name", "a" * 5000],
        ["/" + "b" * 60_000],
        [str(model_file), "--env", "c" * 5000],
    ):
        ended = cli("deploy", *args)
        assert ended.status in (1, 2)
        assert len(ended.err) < 600
    assert len(cli("logs", "d" * 5000, "--tail", "e" * 5000).err) < 1000


def test_the_waiting_goes_on_when_gpustack_is_started_again(
    cli: Cli, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPUStack of this machine has another credential for the command line after each start."""
    us = identify(os.getpid())
    assert us is not None
    run = tmp_path / "data" / "run"
    run.mkdir(parents=True)
    (run / "cli_token").write_text("before")
    with fake_api() as api:
        state = {
            "pid": us.pid,
            "started": us.started,
            "url": api.url,
            "data_dir": str(tmp_path),
            "log_dir": "/x",
        }
        (run / "supervisor.json").write_text(json.dumps(state))
        script(api, step("running"))
        served = api._routes["GET", "/v2/model-instances"][0]
        cut = Reply(pieces=[_END, step("starting", kind=CREATED)])

        def instances(asked: Asked) -> Reply:
            if asked.headers["authorization"] == "Bearer after":
                return served(asked) if callable(served) else served
            if len(api.requests("GET", "/v2/model-instances")) > 1:
                (run / "cli_token").write_text("after")
                return Reply(
                    401, {"message": "this API key is not known here; it was deleted, or has expired"}
                )
            return cut

        api.on("GET", "/v2/model-instances", instances)
        ended = cli("deploy", str(model_file))

    assert (ended.status, ended.err) == (0, "")
    assert "tiny is running" in ended.out


def test_an_engine_that_is_started_again_is_waited_for(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, step("error", NOW, kind=CREATED), step("initializing"), step("running"))

    ended = cli("deploy", str(model_file))

    assert ended.status == 0
    assert (
        "error: the engine exited with status 2 after 0.4 s while loading the model; trying again now"
        in ended.out
    )


@pytest.mark.parametrize("between", [[step("initializing"), step("starting")], []])
def test_an_engine_that_fails_twice_at_once_in_the_same_way_is_given_up(
    cli: Cli, api: FakeApi, model_file: Path, between: list[bytes]
) -> None:
    script(api, step("error", NOW, kind=CREATED), *between, step("error", LATER))

    ended = cli("deploy", str(model_file))

    assert ended.status == 1
    assert "12:00:02 bad flag" in ended.err
    assert "GPUStack goes on trying" in ended.err


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (NETWORK, NETWORK),
        (NOW, NETWORK),
        (NOW, LATER.replace("exited with status 2", "was killed by SIGKILL")),
    ],
)
def test_errors_that_may_pass_are_waited_for(
    cli: Cli, api: FakeApi, model_file: Path, first: str, second: str
) -> None:
    script(
        api,
        step("error", first, kind=CREATED),
        step("initializing"),
        step("error", second),
        step("initializing"),
        step("running"),
    )
    assert cli("deploy", str(model_file)).status == 0


def test_the_third_error_in_a_row_is_the_last(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, *[step("error", NETWORK), step("initializing")] * 2, step("error", NETWORK))

    ended = cli("deploy", str(model_file))

    assert ended.status == 1
    assert "package index" in ended.err
    assert "GPUStack goes on trying" in ended.err


def test_the_same_failure_a_while_later_is_another_one() -> None:
    rollout = Rollout(replicas=1, whole=True)

    def outcome_after(message: str, now: float) -> Any:
        state = "error" if message else "initializing"
        data = an_instance(state=state, state_message=message)
        rollout.take(Event(type=EventType.UPDATED, id=11, data=data, number=1), now)
        return rollout.outcome(now)

    assert outcome_after(NOW, 0.0) is None
    assert outcome_after("", 1.0) is None
    assert outcome_after(LATER, 60.0) is None
    assert outcome_after("", 70.0) is None
    assert outcome_after(LATER, 71.0) is not None


def test_no_room_is_explained_and_stays_queued(cli: Cli, api: FakeApi, model_file: Path) -> None:
    reason = "no worker has room:\nw1: 4.0 GiB of memory missing"
    script(api, step("pending", kind=CREATED), step("analyzing"), step("pending", reason))

    ended = cli("deploy", str(model_file))

    assert ended.status == 1
    assert "w1: 4.0 GiB of memory missing" in ended.err
    assert "stays queued" in ended.err


def test_being_placed_again_is_no_lack_of_room(cli: Cli, api: FakeApi, model_file: Path) -> None:
    again = "worker w1 did not take the instance within 60 s; placing it again"
    script(api, step("pending", again, kind=CREATED), step("analyzing"), step("running"))
    assert cli("deploy", str(model_file)).status == 0


def test_time_runs_out(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, step("starting", "loading", kind=CREATED))

    ended = cli("deploy", str(model_file), "--timeout", "0.5")

    assert ended.status == 1
    assert "0 of 1 running" in ended.err
    assert "tiny-abcde is starting: loading" in ended.err
    assert "It goes on; `gpustack ps`" in ended.err


def test_somebody_deletes_the_model_meanwhile(cli: Cli, api: FakeApi, model_file: Path) -> None:
    script(api, step("pending", kind=CREATED), event(DELETED, 11, number=9))
    api.on("GET", "/v2/models/1", Reply(404, {"message": "there is no model 1"}))

    ended = cli("deploy", str(model_file))

    assert ended.status == 1
    assert "tiny was deleted meanwhile" in ended.err


def test_json_is_the_model_with_its_instances_and_nothing_else(
    cli: Cli, api: FakeApi, model_file: Path
) -> None:
    script(api, step("pending", kind=CREATED), step("running"))

    ended = cli("deploy", str(model_file), "--json")

    document = json.loads(ended.out)
    assert (ended.status, ended.err) == (0, "")
    assert (document["name"], document["ready_replicas"]) == ("tiny", 1)
    assert [each["state"] for each in document["instances"]] == ["running"]


def test_a_name_that_is_taken(cli: Cli, api: FakeApi, model_file: Path) -> None:
    api.on("POST", "/v2/models", Reply(409, {"code": 409, "reason": "x", "message": "a model 'tiny' exists"}))
    ended = cli("deploy", str(model_file))
    assert (ended.status, ended.err) == (1, "Error: a model 'tiny' exists\n")


def test_a_missing_path_is_found_before_the_server_is_asked(cli: Cli, api: FakeApi, tmp_path: Path) -> None:
    ended = cli("deploy", str(tmp_path / "no.gguf"))
    assert ended.status == 1
    assert f"{tmp_path / 'no.gguf'} is not there" in ended.err
    assert api.asked == []


def test_a_relative_path_for_another_machine_is_refused(cli: Cli, api: FakeApi, model_file: Path) -> None:
    ended = cli("deploy", "tiny.gguf", "--server", "http://192.0.2.1:9080")
    assert ended.status == 2
    assert "whole path" in ended.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--env", "NOVALUE"], "KEY=VALUE"),
        (["--env", "1x=2"], "1x"),
        (
            ["--name", "bad name!"],
            "Error: --name 'bad name!': a name is made of letters, digits and . _ : / - with",
        ),
        (["--name", ""], "--name is empty"),
        (["--name", "../../etc"], "--name '../../etc'"),
        (["--timeout", "nan"], "not a finite number"),
        (["--name", "-"], "a letter or digit at both ends"),
        (["--name", "a" * 129], "128 characters at most"),
        (["--backend-version", "; rm"], "backend-version"),
    ],
)
def test_bad_values_are_told_without_asking_the_server(
    cli: Cli, api: FakeApi, model_file: Path, args: list[str], said: str
) -> None:
    ended = cli("deploy", str(model_file), *args)
    assert ended.status == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert api.asked == []


@pytest.mark.parametrize("name", ["a model", "模型 (1)", "-leading", "it's"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_any_path_will_do(
    cli: Cli, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    path = tmp_path / "some where" / name
    path.mkdir(parents=True) if kind == "directory" else path.parent.mkdir() or path.touch()
    script(api)
    monkeypatch.chdir(path.parent)

    ended = cli("deploy", f"./{name}", "--no-wait", "--name", "tiny")

    assert (ended.status, ended.err) == (0, "")
    assert api.requests("POST", "/v2/models")[0].json["local_path"] == str(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/m/tiny.gguf", "tiny"),
        ("/m/Qwen3-8B.Q4_K_M.gguf", "Qwen3-8B.Q4_K_M"),
        ("/m/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/m/my model (1).gguf", "my-model-1"),
        ("/m/模型 a.gguf", "a"),
    ],
)
def test_names_come_from_the_file(path: str, name: str) -> None:
    assert default_name(path) == name


def test_ctrl_c_ends_the_waiting_and_not_the_deployment(model_file: Path) -> None:
    with fake_api() as api:
        script(api, step("starting", "loading", kind=CREATED))
        command = [sys.executable, "-m", "gpustack", "deploy", str(model_file)]
        command += ["--server", api.url, "--api-key", "key"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while "starting" not in (line := process.stdout.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)

        assert process.returncode == 130
        assert "tiny goes on being deployed" in said
        assert "Traceback" not in said
        assert not api.requests("DELETE", "/v2/models/1")
