"""``gpustack backends apply``, ``show`` and ``delete``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.command_line import Cli
from support.fake_api import FakeApi, Reply

PATH = "/v2/inference-backends"
FILE = "backend_name: mine\ndefault_run_command: serve {{port}}\nversion_configs:\n  '2':\n    image_name: mine:2\n"
MINE: dict[str, Any] = {
    "id": 7, "backend_name": "mine", "default_version": "", "plugin": "", "distribution": "",
    "distribution_version": "", "is_built_in": False, "default_run_command": "serve {{port}}",
    "version_configs": {"2": {"runner": "container", "image_name": "mine:2"}}, "created_at": "2026-01-02T03:04:05Z",
    "default_env": {"TOKEN": "secret"}, "installed_versions": {},
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return str(path)


def test_apply_makes_what_is_not_there(cli: Cli, api: FakeApi, file: str) -> None:
    api.on("GET", f"{PATH}/backend_name/mine", Reply(404, {"code": 404, "message": "there is none"}))
    api.on("POST", PATH, Reply(201, MINE))

    ended = cli("backends", "apply", file)

    assert (ended.status, ended.out) == (0, "Added mine: 2.\n")
    [asked] = api.requests("POST", PATH)
    sent = json.loads(asked.body)
    assert sent["default_run_command"] == "serve {{port}}"
    assert sent["version_configs"] == {"2": {"runner": "container", "image_name": "mine:2"}}
    assert "description" not in sent


def test_apply_changes_what_is_there(cli: Cli, api: FakeApi, file: str) -> None:
    api.on("GET", f"{PATH}/backend_name/mine", Reply(body=MINE))
    api.on("PUT", f"{PATH}/7", Reply(body=MINE))

    assert cli("backends", "apply", file).out == "Changed mine: 2.\n"
    assert json.loads(cli("backends", "apply", file, "--json").out)["created_now"] is False


def test_a_file_that_says_not_how_it_runs_is_told_with_its_line(cli: Cli, api: FakeApi, file: str) -> None:
    Path(file).write_text("description: x\nbackend_name: mine\n")
    api.on("GET", f"{PATH}/backend_name/mine", Reply(404, {"code": 404, "message": "there is none"}))

    ended = cli("backends", "apply", file)

    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert f"{file}:2: backend_name: a backend of your own has a default_run_command" in ended.err
    # A plugin's backend need not say it.
    api.on("GET", f"{PATH}/backend_name/mine", Reply(body={**MINE, "is_built_in": True}))
    api.on("PUT", f"{PATH}/7", Reply(body=MINE))
    assert cli("backends", "apply", file).status == 0


def test_a_bad_file_asks_nobody(cli: Cli, api: FakeApi, file: str) -> None:
    Path(file).write_text(FILE.replace("serve {{port}}", "serve {{prot}}"))

    ended = cli("backends", "apply", file)

    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert (
        f"{file}:2: default_run_command: there is no placeholder {{{{prot}}}}; the known ones are"
        in ended.err
    )
    assert api.asked == []
    ended = cli("backends", "apply", file + ".not")
    assert (ended.status, ended.err) == (2, f"Error: {file}.not: No such file or directory\n")


def test_show_tells_all_but_secrets(cli: Cli, api: FakeApi) -> None:
    api.on("GET", f"{PATH}/backend_name/mine", Reply(body=MINE))

    said = cli("backends", "show", "mine").out

    assert "2: image mine:2" in said
    assert "secret" not in said
    assert cli("backends", "show", "mine", "--yaml").out.startswith(
        "backend_name: mine\nversion_configs:\n  '2':\n"
    )
    assert json.loads(cli("backends", "show", "mine", "--json").out)["default_env"] == {"TOKEN": "secret"}


def test_delete_removes_the_description_alone(cli: Cli, api: FakeApi) -> None:
    built_in = {**MINE, "is_built_in": True, "distribution": "gpustack-x"}
    api.on("GET", f"{PATH}/backend_name/mine", Reply(body=MINE), Reply(body=built_in))
    api.on("DELETE", f"{PATH}/7", Reply(204))

    assert cli("backends", "delete", "mine").out == "Removed the description of mine.\n"
    assert (
        cli("backends", "delete", "mine").out
        == "Removed the description of mine; gpustack-x still brings it.\n"
    )
    assert len(api.requests("DELETE", f"{PATH}/7")) == 2
