"""Whatever happens: an exit status that means something, and one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import SettingsError
from support.fake_api import FakeApi, Reply, a_model, page

Cli = Any


def test_nothing_runs(cli: Cli, tmp_path: Path) -> None:
    for command in (["ls"], ["status"], ["deploy", "x.gguf"]):
        ended = cli(*command)
        assert ended.status == 3
        assert ended.err.count("\n") == 1
        assert ended.err.startswith(f"Error: no GPUStack runs with data directory {tmp_path / 'data'};")


def test_stopping_nothing_is_fine(cli: Cli) -> None:
    ended = cli("stop")
    assert (ended.status, ended.err) == (0, "")
    assert "Nothing runs" in ended.out


def test_status_as_json_says_that_nothing_runs(cli: Cli, tmp_path: Path) -> None:
    ended = cli("status", "--json")
    assert ended.status == 3
    assert '"running": false' in ended.out
    assert ended.err == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["strat"], "did you mean 'start'?"),
        (["start", "--prot", "80"], "--port"),
        (["rm"], "NAME"),
        (["keys", "create", "x", "--expires", "soon"], "30d"),
        (["deploy", "x", "--replicas", "-1"], "--replicas"),
        (["ls", "--server", "notaurl"], "'notaurl' is not a server's URL"),
        (["login", "notaurl"], "'notaurl' is not a server's URL"),
        (["login", "http://127.0.0.1:1"], "there is no terminal"),
        (["backup", ""], "FILE is empty"),
        (["chat", "tiny", "--once", "x", "--temperature", "nan"], "--temperature"),
        (["chat", "tiny", "--once", "x", "--temperature", "inf"], "--temperature"),
        (["start", "--token", ""], "--token: it is empty"),
        (["start", "--port", "9080", "--worker-port", "9080"], "--port and --worker-port are both 9080"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(cli: Cli, args: list[str], said: str) -> None:
    ended = cli(*args)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err


@pytest.mark.parametrize("args", [[], ["help"], ["help", "deploy"], ["help", "keys", "create"], ["keys"]])
def test_help_is_an_answer_and_no_error(cli: Cli, args: list[str]) -> None:
    ended = cli(*args)
    assert (ended.status, ended.err) == (0, "")
    command = " ".join(each for each in args if each != "help")
    assert ended.out.startswith(f"Usage: gpustack {command}".rstrip() + " ")


def test_wrong_settings_are_a_line_each(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SettingsError("--port x: no\n--token: no")

    monkeypatch.setattr("gpustack.app.start.start", refuse)
    ended = cli("start")
    assert ended.status == 2
    assert ended.err == "Error: --port x: no\nError: --token: no\n"


def test_start_hands_on_the_flags_as_text(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    monkeypatch.setattr("gpustack.app.start.start", lambda flags, *_, **__: given.append(flags))

    cli("--data-dir", "/before", "start", "--port", "9080", "--disable-worker")
    cli("--data-dir", "/before", "start", "--data-dir", "/after", "-d")

    assert given == [
        {"data_dir": "/before", "port": "9080", "disable_worker": "true"},
        {"data_dir": "/after", "debug": "true"},
    ]


def test_the_servers_refusal_is_the_line(cli: Cli, api: FakeApi) -> None:
    api.on(
        "GET",
        "/v2/models",
        Reply(403, {"code": 403, "reason": "x", "message": "this needs an administrator"}),
    )
    ended = cli("ls")
    assert (ended.status, ended.out, ended.err) == (1, "", "Error: this needs an administrator\n")


def test_what_nobody_foresaw_is_one_line_too(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpustack.cli import main

    def fail(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("gpustack.cli.target.Target.connection", fail)
    ended = cli("ls")
    assert ended.status == 1
    assert ended.err == "Error: unexpected KeyError: 'oops'; GPUSTACK_DEBUG=1 shows where\n"

    monkeypatch.setenv("GPUSTACK_DEBUG", "1")
    assert main(["ls"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_quiet(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpustack.cli.target.Target.connection", interrupt)
    ended = cli("ls")
    assert (ended.status, ended.err.strip()) == (130, "")


def test_a_reader_that_leaves_is_no_trouble(api: FakeApi) -> None:
    models = [a_model(id=number, name=f"model-{number}") for number in range(3000)]
    api.on("GET", "/v2/models", Reply(body=page(*models)))

    listing = subprocess.Popen(
        [sys.executable, "-m", "gpustack", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.read(10)
    listing.stdout.close()
    said = listing.stderr.read()
    listing.stderr.close()
    assert said == b""
    assert listing.wait(20) == 141


def test_not_signed_in_names_the_command(cli: Cli) -> None:
    ended = cli("ls", "--server", "http://gpustack.example:9080/")
    assert ended.status == 1
    assert "gpustack login http://gpustack.example:9080" in ended.err


def test_another_users_gpustack_is_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def denied(self: Path, **how: str) -> str:
        if self.parent == tmp_path / "data" / "run":
            raise PermissionError(13, "Permission denied")
        return read(self, **how)

    monkeypatch.setattr(Path, "read_text", denied)  # root may read everything
    ended = cli("ls")
    assert ended.status == 1
    assert "belongs to another user" in ended.err
    assert "gpustack login URL" in ended.err


def test_the_environment_of_the_tests_is_clean() -> None:
    assert "GPUSTACK_SERVER" not in os.environ
