"""Finding the server of this machine, and remembering those of others."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gpustack.client.local import NothingRuns, cli_token, read_state, running_state
from gpustack.client.logins import Login, Logins
from gpustack.kit.errors import Forbidden, GPUStackError
from gpustack.kit.process import identify


def write_state(data_dir: Path, **fields: Any) -> None:
    me = identify(os.getpid())
    assert me is not None
    document = {
        "pid": me.pid, "started": me.started, "url": "http://192.0.2.7:9080", "version": "0.1.0",
        "data_dir": str(data_dir), "log_dir": str(data_dir / "log"),
        "children": {"server": {"pid": None, "state": "restarting", "restarts": 2}}, **fields,
    }  # fmt: skip
    (data_dir / "run").mkdir(exist_ok=True)
    (data_dir / "run" / "supervisor.json").write_text(json.dumps(document))


def test_the_running_server_is_found_and_asked_on_loopback(tmp_path: Path) -> None:
    write_state(tmp_path, future="field")
    (tmp_path / "run" / "cli_token").write_text("token\n")

    state = running_state(tmp_path)

    assert state.local_url == "http://127.0.0.1:9080"
    assert (state.children["server"].pid, state.children["server"].restarts) == (None, 2)
    assert cli_token(tmp_path) == "token"


def test_a_file_left_by_a_killed_supervisor_means_nothing(tmp_path: Path) -> None:
    # The number is in use, by another process than the one that wrote it.
    write_state(tmp_path, started=1_000_000_000.0)

    with pytest.raises(NothingRuns, match=str(tmp_path)):
        running_state(tmp_path)


def test_nothing_was_ever_started(tmp_path: Path) -> None:
    assert read_state(tmp_path / "missing") is None
    with pytest.raises(NothingRuns, match="gpustack start"):
        running_state(tmp_path / "missing")


def test_a_damaged_file_is_named_while_somebody_runs_there(tmp_path: Path) -> None:
    write_state(tmp_path)
    (tmp_path / "run" / "supervisor.json").write_text('{"pid": 1}')
    assert read_state(tmp_path) is None

    (tmp_path / "gpustack.lock").write_text(str(os.getpid()))
    with pytest.raises(GPUStackError, match=r"supervisor\.json"):
        read_state(tmp_path)


def test_another_users_directory_leads_to_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", denied)  # root may read everything

    with pytest.raises(Forbidden, match="gpustack login URL"):
        running_state(tmp_path)


def a_login(url: str) -> Login:
    return Login(url=url, username="admin", key_id=3, key="gpustack_secret")


def test_the_last_login_is_current_and_the_one_before_comes_back(tmp_path: Path) -> None:
    logins = Logins(tmp_path / "new folder" / "logins.json")
    assert logins.current() is None

    logins.save(a_login("http://one:9080/"))
    logins.save(a_login("http://two:9080"))
    assert logins.current() == a_login("http://two:9080")
    assert logins.get("http://one:9080") is not None

    logins.forget("http://two:9080/")
    assert logins.current() == a_login("http://one:9080/")


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    logins = Logins(tmp_path / "logins.json")
    logins.save(a_login("http://one:9080"))

    assert stat.S_IMODE(logins.path.stat().st_mode) == 0o600
    assert "secret" not in repr(logins.current())


def test_a_damaged_login_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "logins.json"
    path.write_text("{")

    with pytest.raises(GPUStackError, match=str(path)):
        Logins(path).current()
