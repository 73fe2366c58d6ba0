"""Listings, removing, logs, keys, chat and logins against a scripted server."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from gpustack.cli.output import clean
from gpustack.client.logins import Login, Logins
from gpustack.kit.process import identify
from gpustack.worker.runners.records import EngineRecord, write_record
from support.fake_api import Asked, FakeApi, Reply, a_model, an_instance, event, fake_api, page

Cli = Any
_TIME = "2026-01-02T03:04:05Z"
DELETED, HEARTBEAT = 3, 5


def a_key(**fields: Any) -> dict[str, Any]:
    return {
        "id": 3, "name": "k", "user_id": 1, "access_key": "0011", "created_at": _TIME, "updated_at": _TIME, **fields,
    }  # fmt: skip


def test_a_listing_for_people_and_one_for_programs(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(categories=["llm"], ready_replicas=1))))

    table = cli("ls").out.splitlines()
    assert table[0].split() == ["NAME", "READY", "CATEGORIES", "BACKEND", "AGE", "SOURCE"]
    assert table[1].split()[:4] == ["tiny", "1/1", "llm", "auto"]
    assert json.loads(cli("ls", "--json").out)[0]["ready_replicas"] == 1


def test_an_empty_listing_is_an_empty_list(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/models", Reply(body=page()))

    ended = cli("ls")
    assert (ended.status, ended.out) == (0, "")
    assert "gpustack deploy" in ended.err
    assert json.loads(cli("ls", "--json").out) == []


def test_only_the_first_line_of_a_message_is_listed(cli: Cli, api: FakeApi) -> None:
    instance = an_instance(state="error", state_message="it broke\nsecond line", worker_name="w1")
    api.on("GET", "/v2/model-instances", Reply(body=page(instance)))

    out = cli("ps").out
    assert "it broke" in out
    assert "second line" not in out


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_a_table_fits_the_terminal_and_keeps_names_whole(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("gpustack.cli.output.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    instance = an_instance(
        state="error", state_message="it broke " * 30, worker_name="worker-one", backend="llama-cpp",
        backend_version="2026.10.11549", pid=1234567, port=40000,
    )  # fmt: skip
    api.on("GET", "/v2/model-instances", Reply(body=page(instance)))

    header, row = cli("ps").out.splitlines()
    assert max(len(header), len(row)) <= columns
    assert row.startswith("tiny-abcde  ")
    assert row.endswith("…")
    assert ("llama-cpp 2026.10.11549" in row) == (columns == 200)


def test_what_others_named_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b]0;title\x07b\u202ec\r\n") == "a]0;titlebc"


def script_removal(api: FakeApi, **instance: Any) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    api.on("DELETE", "/v2/models/1", Reply(204))

    def instances(asked: Asked) -> Reply:
        # The watch waits for their end: none is there any more.
        gone = [event(HEARTBEAT, 0, number=7)]
        return (
            Reply(pieces=gone)
            if "watch" in asked.query
            else Reply(body=page(an_instance(worker_id=1, **instance)))
        )

    api.on("GET", "/v2/model-instances", instances)


def test_removing_tells_what_is_missing(cli: Cli, api: FakeApi) -> None:
    script_removal(api)

    ended = cli("rm", "nothing", "tiny", "tiny")

    assert (ended.status, ended.out) == (1, "Removed tiny.\n")
    assert "'nothing'" in ended.err
    assert len(api.requests("DELETE", "/v2/models/1")) == 1


@pytest.mark.parametrize("force", [False, True])
def test_what_drains_after_its_model_is_gone_can_be_waited_for_and_cut_off(
    cli: Cli, api: FakeApi, force: bool
) -> None:
    api.on("GET", "/v2/models", Reply(body=page()))
    api.on("DELETE", "/v2/model-instances/11", Reply(204))
    left = an_instance(worker_id=1, state="running", draining_since="2026-01-02T03:04:05Z")

    def instances(asked: Asked) -> Reply:
        others = an_instance(id=12, name="tiny-other", worker_id=1), an_instance(id=13, model_name="other")
        if "watch" not in asked.query:
            return Reply(body=page(left, *others))
        there = event(1, 11, left)
        return Reply(pieces=[there, event(HEARTBEAT, 0, number=7), event(DELETED, 11)])

    api.on("GET", "/v2/model-instances", instances)

    ended = cli("rm", "tiny", *(["--force"] if force else []))

    assert (ended.status, ended.out.partition(";")[0].rstrip(".\n")) == (0, "Removed tiny")
    assert ("tiny is removed already; tiny-abcde is draining" in ended.err) is not force
    assert [each.query for each in api.requests("DELETE", "/v2/model-instances/11")] == [
        {"force": "true"}
    ] * force
    assert cli("rm", "nothing").status == 1


def test_removing_elsewhere_does_not_claim_that_engines_have_ended(cli: Cli, api: FakeApi) -> None:
    script_removal(api, state="running", pid=os.getpid())

    assert cli("rm", "tiny").out == "Removed tiny.\n"
    assert cli("rm", "tiny", "--no-wait").out == "Removed tiny; its engines are ending.\n"
    assert cli("rm", "tiny", "--force").out == "Removed tiny; its engines are ending.\n"
    assert api.requests("DELETE", "/v2/models/1")[-1].query == {"force": "true"}
    assert json.loads(cli("rm", "tiny", "--no-wait", "--json").out) == {
        "removed": ["tiny"], "ending": ["tiny"], "missing": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "flags", "said"),
    [
        (True, [], "Removed tiny.\n"),
        (False, [], "Removed tiny; its engines are ending.\n"),
        (False, ["--no-wait"], "Removed tiny; its engines are ending.\n"),
    ],
)
def test_removing_here_waits_for_the_engines(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, flags: list[str], said: str
) -> None:
    monkeypatch.setattr("gpustack.cli.rm.PATIENCE", 10.0 if ends else 0.3)
    with fake_api() as api, subprocess.Popen(["sleep", "60"], env=_OF_11) as engine:
        try:
            runs_here(tmp_path / "data", api.url, engine=engine.pid)
            script_removal(api, state="running", pid=engine.pid)

            def ended_by_its_worker(asked: Asked) -> Reply:
                if ends:
                    threading.Timer(0.3, engine.kill).start()
                return Reply(204)

            api.on("DELETE", "/v2/models/1", ended_by_its_worker)
            ended = cli("rm", "tiny", *flags)
        finally:
            engine.kill()

    assert (ended.status, ended.out, ended.err) == (0, said, "")


#: What the environment of an engine tells.
_OF_11 = {**os.environ, "GPUSTACK_INSTANCE_ID": "11"}


def runs_here(data_dir: Path, url: str, *, engine: int) -> None:
    """Write down that this very process is the GPUStack of ``data_dir`` and runs instance 11 as ``engine``."""
    us, it = identify(os.getpid()), identify(engine)
    assert us is not None
    assert it is not None
    (data_dir / "run").mkdir(parents=True)
    (data_dir / "run" / "cli_token").write_text("token")
    state = {"pid": us.pid, "started": us.started, "url": url, "data_dir": str(data_dir), "log_dir": "/x"}
    (data_dir / "run" / "supervisor.json").write_text(json.dumps(state))
    record = EngineRecord(
        instance_id=11, instance_name="tiny-abcde", port=1, log_path="", argv_digest="",
        pid=it.pid, started=it.started,
    )  # fmt: skip
    write_record(data_dir / "run", record)


@pytest.mark.parametrize(
    "change",
    [["rm", "tiny"], ["keys", "create", "k"], ["keys", "revoke", "k"], ["deploy", "/m/x.gguf", "--no-wait"]],
    ids=" ".join,
)
def test_a_change_at_the_last_login_says_where(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch, change: list[str]
) -> None:
    monkeypatch.delenv("GPUSTACK_SERVER")
    monkeypatch.delenv("GPUSTACK_API_KEY")
    Logins().save(Login(url=api.url, username="admin", key_id=3, key="gpustack_0011_secret"))
    script_removal(api)
    api.on("POST", "/v2/api-keys", Reply(201, a_key(value="gpustack_0012_secret")))
    api.on("GET", "/v2/api-keys", Reply(body=page(a_key())))
    api.on("DELETE", "/v2/api-keys/3", Reply(204))

    said = cli(*change).err.splitlines()[0]
    assert said == f"No GPUStack of yours runs here; this is for {api.url}, the last login."
    assert cli("ls").err == ""
    assert said not in cli(*change, "--server", api.url).err


def test_one_log_comes_as_it_is(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance())))
    api.on("GET", "/v2/model-instances/11/logs", Reply(pieces=[b"one\ntw", b"o\nno newline"]))

    assert cli("logs", "tiny-abcde", "--tail", "5").out == "one\ntwo\nno newline"
    assert api.asked[-1].query == {"tail": "5", "follow": "false"}


def test_the_log_of_the_start_before_is_asked_for(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance())))
    api.on("GET", "/v2/model-instances/11/logs", Reply(pieces=[b"old\n"]))

    assert cli("logs", "tiny-abcde", "--previous").out == "old\n"
    assert api.requests("GET", "/v2/model-instances/11/logs")[0].query["previous"] == "true"
    both = cli("logs", "tiny-abcde", "-p", "-f")
    assert both.status == 2
    assert "leave --follow out" in both.err


def test_who_follows_a_log_waits_for_it(cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpustack.cli.logs._POLL", 0.01)
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance())))
    api.on("GET", "/v2/model-instances/11", Reply(body=an_instance(state="scheduled")))
    none_yet, unknown = Reply(409, {"message": "no log yet"}), Reply(404, {"message": "not on that worker"})
    api.on(
        "GET", "/v2/model-instances/11/logs", none_yet, none_yet, unknown, Reply(pieces=[b"one\n"])
    )  # fmt: skip

    ended = cli("logs", "-f", "tiny-abcde")

    assert (ended.status, ended.out) == (0, "one\n")
    assert ended.err == "tiny-abcde has no log yet; waiting for its engine to start.\n"


@pytest.mark.parametrize(("state", "flags"), [("error", ["-f"]), ("pending", [])])
def test_a_log_that_will_not_come_is_not_waited_for(
    cli: Cli, api: FakeApi, state: str, flags: list[str]
) -> None:
    api.on("GET", "/v2/model-instances", Reply(body=page(an_instance())))
    api.on("GET", "/v2/model-instances/11", Reply(body=an_instance(state=state)))
    api.on("GET", "/v2/model-instances/11/logs", Reply(409, {"message": "there is no log"}))

    ended = cli("logs", *flags, "tiny-abcde")

    assert (ended.status, ended.err) == (1, "Error: there is no log\n")


def test_several_logs_name_their_instance(cli: Cli, api: FakeApi) -> None:
    def instances(asked: Asked) -> Reply:
        both = [an_instance(), an_instance(id=12, name="tiny-zz")]
        return Reply(body=page(*(both if asked.query.get("model_id") == "1" else [])))

    api.on("GET", "/v2/model-instances", instances)
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    api.on("GET", "/v2/model-instances/11/logs", Reply(pieces=[b"one\n"]))
    api.on("GET", "/v2/model-instances/12/logs", Reply(409, {"message": "has no log yet"}))

    ended = cli("logs", "tiny")

    assert (ended.status, ended.out) == (0, "tiny-abcde | one\n")
    assert "tiny-zz: has no log yet" in ended.err


def test_a_key_for_a_model_that_is_not_there_yet_is_made_with_a_warning(cli: Cli, api: FakeApi) -> None:
    api.on("POST", "/v2/api-keys", Reply(201, a_key(value="gpustack_0011_secret")))
    api.on("GET", "/v2/models", Reply(body=page(a_model())))

    ended = cli("keys", "create", "k", "--model", "tiny", "--model", "nope")

    assert (ended.status, ended.out) == (0, "gpustack_0011_secret\n")
    assert "there is no model 'nope' yet" in ended.err
    assert "'tiny'" not in ended.err


def test_a_key_alone_goes_to_standard_output(cli: Cli, api: FakeApi) -> None:
    api.on("POST", "/v2/api-keys", Reply(201, a_key(value="gpustack_0011_secret")))

    ended = cli("keys", "create", "k", "--expires", "30d", "--model", "tiny")

    assert ended.out == "gpustack_0011_secret\n"
    assert api.asked[0].json == {
        "name": "k", "description": "", "expires_in": 30 * 86400, "allowed_model_names": ["tiny"],
    }  # fmt: skip


def test_nothing_is_revoked_when_one_name_is_wrong(cli: Cli, api: FakeApi) -> None:
    api.on("GET", "/v2/api-keys", Reply(body=page(a_key())))
    api.on("DELETE", "/v2/api-keys/3", Reply(204))

    assert cli("keys", "revoke", "k", "typo").status == 1
    assert not api.requests("DELETE", "/v2/api-keys/3")
    assert cli("keys", "revoke", "k").out == "Revoked k.\n"
    assert cli("keys", "revoke", "k", "--close-streams").out == "Revoked k.\n"
    assert [each.query.get("close_streams") for each in api.requests("DELETE", "/v2/api-keys/3")] == [
        None,
        "true",
    ]


def script_chat(api: FakeApi, **model: Any) -> None:
    api.on("GET", "/v2/models", Reply(body=page(a_model(**model))))
    pieces = [
        b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\ndata: [DONE]\n\n',
    ]
    api.on("POST", "/v1/chat/completions", lambda _: Reply(pieces=pieces))


def test_one_prompt(cli: Cli, api: FakeApi) -> None:
    script_chat(api, categories=["llm"])

    ended = cli("chat", "tiny", "--once", "Hi", "--system", "Be brief", "--max-tokens", "5", "--verbose")

    assert ended.out == "Hello\n"
    assert "2 tokens" in ended.err
    asked = api.requests("POST", "/v1/chat/completions")[0].json
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    assert asked["max_tokens"] == 5
    assert "temperature" not in asked


def test_a_prompt_from_a_pipe(cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    script_chat(api)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nthere"))

    document = json.loads(cli("chat", "tiny", "--json").out)

    assert (document["text"], document["finish_reason"]) == ("Hello", "stop")
    assert document["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert api.requests("POST", "/v1/chat/completions")[0].json["messages"][0]["content"] == "Hi\nthere"


def test_a_conversation_is_kept_and_forgotten(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_chat(api)
    typed = iter(
        ["one", KeyboardInterrupt(), "two", "/reset", "three", KeyboardInterrupt(), KeyboardInterrupt()]
    )

    def type_next(_: str) -> str:
        entry = next(typed)
        if isinstance(entry, KeyboardInterrupt):
            raise entry
        return entry

    monkeypatch.setattr("builtins.input", type_next)
    monkeypatch.setattr("gpustack.cli.chat._piped", lambda: None)

    ended = cli("chat", "tiny")

    asked = [
        [each["content"] for each in request.json["messages"]]
        for request in api.requests("POST", "/v1/chat/completions")
    ]
    assert asked == [["one"], ["one", "Hello", "two"], ["three"]]
    assert ended.status == 0


def test_an_embedding_model_does_not_chat(cli: Cli, api: FakeApi) -> None:
    script_chat(api, categories=["embedding"])
    ended = cli("chat", "tiny", "--once", "Hi")
    assert ended.status == 1
    assert "does not chat" in ended.err
    assert "/v1/embeddings" in ended.err


def test_a_key_that_may_only_infer_may_chat(cli: Cli, api: FakeApi) -> None:
    script_chat(api)
    api.on("GET", "/v2/models", Reply(403, {"message": "this API key is limited"}))
    assert cli("chat", "tiny", "--once", "Hi").out == "Hello\n"


def test_login_keeps_a_key_and_logout_revokes_it(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GPUSTACK_SERVER")
    monkeypatch.delenv("GPUSTACK_API_KEY")
    reply = {"username": "admin", "is_admin": True, "require_password_change": True}
    api.on("POST", "/auth/login", Reply(body=reply, headers={"Set-Cookie": "gpustack_session=abc; Path=/"}))
    api.on("POST", "/auth/logout", Reply(body={"logout_url": None}))
    api.on("POST", "/v2/api-keys", Reply(201, a_key(value="gpustack_0011_secret")))
    api.on("DELETE", "/v2/api-keys/3", Reply(204))
    api.on("GET", "/v2/models", Reply(body=page(a_model())))
    monkeypatch.setattr("sys.stdin", io.StringIO("pass word\n"))

    ended = cli("login", api.url + "/", "--username", "admin", "--password-stdin")

    assert ended.status == 0
    assert "change it" in ended.err
    assert "secret" not in ended.out + ended.err
    assert api.requests("POST", "/auth/login")[0].body == b"username=admin&password=pass+word"
    assert "gpustack_session=abc" in api.requests("POST", "/v2/api-keys")[0].headers["cookie"]
    saved = tmp_path / "config" / "gpustack" / "logins.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600

    assert "tiny" in cli("ls").out
    assert api.requests("GET", "/v2/models")[0].headers["authorization"] == "Bearer gpustack_0011_secret"

    assert cli("logout").status == 0
    assert api.requests("DELETE", "/v2/api-keys/3")
    assert cli("ls").status == 3


def test_a_wrong_password_is_told_with_the_server(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.on("POST", "/auth/login", Reply(401, {"message": "the user name or the password is wrong"}))
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    ended = cli("login", api.url, "--username", "admin", "--password-stdin")
    assert (ended.status, ended.err) == (1, f"Error: {api.url}: the user name or the password is wrong\n")


def test_login_without_a_terminal_says_how(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    ended = cli("login", "http://192.0.2.1:9080")
    assert ended.status == 2
    assert "--password-stdin" in ended.err
