"""``gpustack config``: what is in effect and why, what is wrong, and what is generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gpustack.app.checks import ports
from gpustack.cli.start import options
from support.running import free_ports
from support.settings import forget_variables

Cli = Any
URL = "postgresql://user:very-secret@host/name"


@pytest.fixture(autouse=True)
def clean(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_variables(monkeypatch)
    monkeypatch.setenv("GPUSTACK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "nowhere")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("debug: true\ntoken: very-secret\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def free() -> list[str]:
    """Flags that make the ports free ones."""
    port, api_port, worker_port = map(str, free_ports(3))
    return ["--port", port, "--api-port", api_port, "--worker-port", worker_port]


def table(text: str) -> dict[str, tuple[str, str]]:
    """Return value and origin of each option, as the columns have them."""
    head, *lines = text.splitlines()
    second, third = head.index("VALUE"), head.index("FROM")
    return {line[:second].strip(): (line[second:third].strip(), line[third:].strip()) for line in lines}


# show ---------------------------------------------------------------------------------------------------


def test_show_tells_each_value_and_where_it_comes_from(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_DATABASE_URL", URL)
    ended = cli(
        "config", "show", "--config-file", str(config), "--allow-methods", "GET", "--allow-methods", "PUT"
    )
    assert (ended.status, ended.err) == (0, "")
    found = table(ended.out)
    assert set(found) == set(options())
    assert found["port"] == ("80", "default")
    assert found["worker_name"] == ("-", "default")
    assert found["data_dir"] == (str(tmp_path / "data"), "GPUSTACK_DATA_DIR")
    assert found["log_dir"] == (str(tmp_path / "data" / "log"), "default")
    assert found["allow_methods"] == ('["GET", "PUT"]', "--allow-methods")
    assert found["debug"] == ("true", f"debug in {config}, line 1")
    assert found["token"] == ("***", f"token in {config}, line 2")
    assert found["database_url"] == ("postgresql://user:***@host/name", "GPUSTACK_DATABASE_URL")
    assert "very-secret" not in ended.out


def test_show_has_the_order_of_the_help(cli: Cli) -> None:
    names = list(table(cli("config", "show").out))
    groups = [options()[name].group for name in names]
    assert groups == sorted(groups, key=["Common", "Server", "Worker"].index)
    assert names[:3] == ["advertise_address", "port", "tls_port"]


def test_show_as_json(cli: Cli, config: Path) -> None:
    ended = cli("config", "show", "--json", "--config-file", str(config), "--port", "9080")
    assert (ended.status, ended.err) == (0, "")
    assert "very-secret" not in ended.out
    rows = {row["name"]: row for row in json.loads(ended.out)}
    assert list(rows) == list(options())
    assert (rows["port"]["value"], rows["port"]["default"], rows["port"]["origin"]) == (9080, 80, "--port")
    assert (rows["token"]["value"], rows["token"]["secret"]) == ("***", True)


def test_show_takes_the_data_directory_before_the_command(cli: Cli) -> None:
    assert table(cli("--data-dir", "/srv/one", "config", "show").out)["data_dir"] == (
        "/srv/one",
        "--data-dir",
    )
    both = cli("--data-dir", "/srv/one", "config", "show", "--data-dir", "/srv/two")
    assert table(both.out)["data_dir"] == ("/srv/two", "--data-dir")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_show_of_wrong_settings_says_all_that_is_wrong(cli: Cli, more: list[str]) -> None:
    ended = cli("config", "show", "--port", "http", "--debug", "maybe", *more)
    assert (ended.status, ended.out) == (2, "")
    assert sorted(ended.err.splitlines()) == [
        "Error: --debug 'maybe': give true or false",
        "Error: --port 'http': give a port from 0 to 65535",
    ]


def test_warnings_are_beside_the_answer(cli: Cli) -> None:
    ended = cli("config", "show", "--token", "very-secret", "--json")
    assert json.loads(ended.out)
    assert ended.err.startswith("Warning: --token shows in the list of processes")
    assert "very-secret" not in ended.out + ended.err


# check --------------------------------------------------------------------------------------------------


def test_check_of_right_settings(cli: Cli, config: Path, free: list[str], tmp_path: Path) -> None:
    ended = cli("config", "check", "--config-file", str(config), *free)
    assert (ended.status, ended.out, ended.err) == (0, "The settings are right.\n", "")
    assert not (tmp_path / "data").exists()
    ended = cli("config", "check", "--config-file", str(config), "--json", *free)
    assert (ended.status, json.loads(ended.out)) == (0, {"ok": True, "problems": [], "warnings": []})


def test_check_with_a_warning(cli: Cli, config: Path, free: list[str]) -> None:
    config.chmod(0o644)
    ended = cli("config", "check", "--config-file", str(config), *free)
    assert (ended.status, ended.out) == (0, "The settings can be used.\n")
    assert ended.err == (
        f"Warning: {config} holds token and other users can read it (mode 0644); chmod 600 {config}\n"
    )


def test_check_tells_what_is_worth_a_line_for_who_asks(
    cli: Cli, free: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("_EPHEMERAL", "32768 60999"), ("_RESERVED", "")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(ports, name, tmp_path / name)
    ended = cli("config", "check", *free)
    assert (ended.status, ended.out) == (0, "The settings can be used.\n")
    assert ended.err.startswith("Warning: --service-port-range 40000-40063, --distributed-")


def test_check_of_wrong_settings(cli: Cli, free: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flags = ["--debug", "maybe", "--log-dir", str(tmp_path / "file"), "--token", "very-secret", *free]
    ended = cli("config", "check", *flags)
    assert (ended.status, ended.out) == (2, "")
    warning, *problems = ended.err.splitlines()
    assert warning.startswith("Warning: --token shows")
    assert problems == [
        "Error: --debug 'maybe': give true or false",
        f"Error: --log-dir {tmp_path / 'file'}: {tmp_path / 'file'} is not a directory; name another place",
    ]
    ended = cli("config", "check", "--json", *flags)
    assert (ended.status, ended.err) == (2, "")
    found = json.loads(ended.out)
    assert not found["ok"]
    assert [f"Error: {line}" for line in found["problems"]] == problems
    assert [f"Warning: {line}" for line in found["warnings"]] == [warning]


def test_check_takes_the_data_directory_before_the_command(cli: Cli, free: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = cli("--data-dir", str(tmp_path / "file"), "config", "check", *free)
    assert ended.status == 2
    assert ended.err.startswith(f"Error: --data-dir {tmp_path / 'file'}: ")


@pytest.mark.parametrize("command", ["show", "check"])
def test_they_take_the_options_of_start_and_no_others(cli: Cli, command: str) -> None:
    ended = cli("config", command, "--prot", "80")
    assert ended.status == 2
    assert "--port" in ended.err
    ended = cli("config", command, "--help")
    assert ended.status == 0
    for option in options().values():
        assert option.flag in ended.out


# example and schema -------------------------------------------------------------------------------------


def test_the_example_can_be_the_file(cli: Cli, free: list[str], tmp_path: Path) -> None:
    ended = cli("config", "example")
    assert (ended.status, ended.err) == (0, "")
    (tmp_path / "example.yaml").write_text(ended.out)
    assert cli("config", "check", "--config-file", str(tmp_path / "example.yaml"), *free).out == (
        "The settings are right.\n"
    )


def test_the_schema_is_one(cli: Cli) -> None:
    ended = cli("config", "schema")
    assert (ended.status, ended.err) == (0, "")
    validator = jsonschema.Draft202012Validator(json.loads(ended.out))
    assert validator.is_valid(yaml.safe_load("port: 9080\ndebug: true"))
    assert not validator.is_valid({"prot": 9080})


def test_config_alone_is_its_help(cli: Cli) -> None:
    ended = cli("config")
    assert (ended.status, ended.err) == (0, "")
    for command in ("show", "check", "example", "schema", "reload"):
        assert f"  {command} " in ended.out
