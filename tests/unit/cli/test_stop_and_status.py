"""What runs is shown, and ended whatever it does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.locks import FileLock
from gpustack.kit.process import identify
from gpustack.worker.artifacts.folders import MARKER
from gpustack.worker.runners.records import EngineRecord, read_records, write_record
from support.fake_api import FakeApi, Reply, a_model, fake_api, page

Cli = Any
_OBEDIENT = "import time; print('up', flush=True); time.sleep(60)"
_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + _OBEDIENT


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def spawn(processes: list[subprocess.Popen[str]], code: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    processes.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


def write_state(data_dir: Path, pid: int, *, url: str = "http://127.0.0.1:9", **children: int | None) -> None:
    who = identify(pid)
    assert who is not None
    (data_dir / "run").mkdir(parents=True, exist_ok=True)
    (data_dir / "run" / "cli_token").write_text("token")
    state = {
        "pid": pid, "started": who.started, "url": url, "version": "0.1.0", "ready": True,
        "data_dir": str(data_dir), "log_dir": str(data_dir / "log"),
        "children": {
            name: {"pid": child, "state": "ready" if child else "restarting", "restarts": 0 if child else 3}
            for name, child in children.items()
        },
    }  # fmt: skip
    (data_dir / "run" / "supervisor.json").write_text(json.dumps(state))


def test_stop_ends_the_supervisor_and_waits(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    write_state(tmp_path / "data", spawn(processes, _OBEDIENT))

    ended = cli("stop")

    assert (ended.status, ended.out, ended.err) == (0, "GPUStack has stopped.\n", "")
    assert identify(processes[0].pid) is None


def test_stop_ends_by_force_what_does_not_listen(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpustack.cli.stop.PATIENCE", 0.5)
    head, child = spawn(processes, _OBEDIENT), spawn(processes, _STUBBORN)
    write_state(tmp_path / "data", head, server=child)

    ended = cli("stop", "--json")

    assert json.loads(ended.out) == {"was_running": True, "forced": 1, "engines_left_behind": 0}
    assert identify(child) is None


def test_stop_ends_engines_that_a_crash_left_behind(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUSTACK_INSTANCE_ID", "7")
    engine = identify(spawn(processes, _OBEDIENT))
    assert engine is not None
    run_dir = tmp_path / "data" / "run"
    (run_dir).mkdir(parents=True)
    (tmp_path / "data" / "gpustack.lock").touch()
    record = EngineRecord(
        instance_id=7, instance_name="tiny-abcde", port=1, log_path="", argv_digest="",
        pid=engine.pid, started=engine.started,
    )  # fmt: skip
    write_record(run_dir, record)

    ended = cli("stop")

    assert ended.status == 0
    assert "1 engine" in ended.err
    assert identify(processes[0].pid) is None
    assert read_records(run_dir) == []


def test_stop_ends_what_a_killed_worker_was_installing(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "data" / "pipx"
    home.mkdir(parents=True)
    (tmp_path / "data" / "gpustack.lock").touch()
    for name in ("abandoned_1", "ours_1"):
        (note := home / f".{name}.busy").write_text("{}")
        monkeypatch.setenv(MARKER, str(note))
        spawn(processes, _OBEDIENT)
    lock = FileLock(home / ".ours_1.lock")
    assert lock.acquire()
    try:
        ended = cli("stop")
    finally:
        lock.release()

    assert (ended.status, ended.out) == (0, "Ended what an earlier crash had left behind.\n")
    assert identify(processes[0].pid) is None
    assert identify(processes[1].pid) is not None, "somebody waits for it"


def test_stop_leaves_a_starting_one_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lock = FileLock(tmp_path / "data" / "gpustack.lock")
    assert lock.acquire()
    try:
        ended = cli("stop")
    finally:
        lock.release()
    assert ended.status == 1
    assert "just starting or stopping" in ended.err


def test_status_is_ready_when_everything_is(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    with fake_api() as api:
        serve(api)
        pid = spawn(processes, _OBEDIENT)
        write_state(tmp_path / "data", pid, url=api.url, server=pid)
        document = json.loads((ended := cli("status", "--json")).out)
        assert ended.status == 0
        assert (document["ready"], document["models"]) == (True, {"total": 2, "ready": 1})
        assert document["children"]["server"]["pid"] == pid
        assert document["children"]["server"]["memory"] > 1 << 20
        assert document["gateway"] is None  # a server from before it told of one
        assert "is ready at" in cli("status").out


def test_status_is_not_ready_while_a_child_is_down(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    with fake_api() as api:
        serve(api)
        pid = spawn(processes, _OBEDIENT)
        write_state(tmp_path / "data", pid, url=api.url, server=pid, worker=None)
        ended = cli("status")
    assert ended.status == 1
    assert "is not ready" in ended.out
    assert re.search(r"worker +restarting, 3 restarts", ended.out)


@pytest.mark.parametrize(
    ("gateway", "line"),
    [
        ({"name": "disabled"}, "Gateway: disabled; the server carries the requests"),
        ({"public_urls": ["http://a", "http://b"]}, "Gateway: acme serves at http://a, http://b"),
        (
            {"healthy": False, "reason": "the proxy is away"},
            "Gateway: acme does not serve: the proxy is away",
        ),
    ],
)
def test_status_tells_how_the_gateway_is(
    gateway: dict[str, Any], line: str, cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    body = {"name": "acme", "public_urls": [], "healthy": True, "reason": "", "version": 3, **gateway}
    with fake_api() as api:
        serve(api)
        api.on("GET", "/v2/gateway", Reply(body=body))
        pid = spawn(processes, _OBEDIENT)
        write_state(tmp_path / "data", pid, url=api.url, server=pid)
        assert line in cli("status").out.splitlines()
        assert json.loads(cli("status", "--json").out)["gateway"]["name"] == body["name"]


def serve(api: FakeApi) -> None:
    api.on("GET", "/readyz", Reply(body="ok"))
    api.on("GET", "/v2/models", Reply(body=page(a_model(ready_replicas=1), a_model(id=2, name="b"))))


def write_update(data_dir: Path, **fields: Any) -> None:
    """Write down what a server of 0.1.0 heard of newer versions."""
    document = {
        "current_version": "0.1.0", "latest_version": "0.2.0", "update_available": True,
        "url": "https://example.org/notes", "checked_at": "2026-01-02T03:04:05+00:00",
        "enabled": True, "source": "https://example.org/latest",
    }  # fmt: skip
    (data_dir / "run" / "update.json").write_text(json.dumps(document | fields))


def test_status_tells_of_an_update_though_the_server_does_not_answer(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    write_state(tmp_path / "data", spawn(processes, _OBEDIENT))
    write_update(tmp_path / "data")
    assert "Update: 0.2.0 is available (you run 0.1.0): https://example.org/notes\n" in cli("status").out
    assert json.loads(cli("status", "--json").out)["update"] == {
        "current_version": "0.1.0",
        "latest_version": "0.2.0",
        "update_available": True,
        "url": "https://example.org/notes",
        "checked_at": "2026-01-02T03:04:05+00:00",
    }
    write_update(tmp_path / "data", url="", latest_version="0.3.0\x1b[2J\x9b")
    assert "Update: 0.3.0[2J is available (you run 0.1.0)\n" in cli("status").out


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "[" * 100_000, '{"current_version": "0.1.0"}'])
def test_status_does_without_what_is_known_of_updates(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]], content: str | None
) -> None:
    write_state(tmp_path / "data", spawn(processes, _OBEDIENT))
    if content is not None:
        (tmp_path / "data" / "run" / "update.json").write_text(content)
    assert "Update" not in cli("status").out
    assert json.loads(cli("status", "--json").out)["update"] is None


@pytest.mark.parametrize("fields", [{"update_available": False}, {"current_version": "0.0.9"}])
def test_status_tells_of_no_update_when_there_is_none(
    cli: Cli, tmp_path: Path, processes: list[subprocess.Popen[str]], fields: dict[str, Any]
) -> None:
    write_state(tmp_path / "data", spawn(processes, _OBEDIENT))
    write_update(tmp_path / "data", **fields)
    assert "Update" not in cli("status").out
