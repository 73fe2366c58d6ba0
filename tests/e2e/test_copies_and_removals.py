"""What people do to a data directory in use, and wrong settings for a restart: nothing that runs is harmed by them."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from support.running import COMMAND, Running, eventually, free_ports, gpustack, processes_of

pytestmark = pytest.mark.xdist_group("e2e-copies")


@pytest.fixture(scope="module")
def settings(place: Path) -> Path:
    """The configuration file, which tests change."""
    file = place / "copies.yaml"
    file.write_text("debug: false\n")
    return file


@pytest.fixture(scope="module")
def stack(place: Path, settings: Path) -> Iterator[Running]:
    """A GPUStack without a worker: its door keeps its sockets only."""
    flags = ["--disable-worker", "--config-file", str(settings)]
    with gpustack(place / "copies data", place / "copies home", flags) as running:
        yield running


def _on(running: Running, data_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, *args, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=running.home)


def test_a_copy_of_the_data_touches_nothing_of_the_original(stack: Running, place: Path) -> None:
    copy = place / "copied data"
    before = stack.state()
    subprocess.run(["cp", "-a", str(stack.data_dir), str(copy)], check=True)

    stopped, shown = _on(stack, copy, "stop"), _on(stack, copy, "status")
    assert (stopped.returncode, shown.returncode) == (0, 3), stopped.stderr + shown.stderr
    assert "Nothing runs" in stopped.stdout

    shutil.copytree(
        stack.data_dir / "run" / "doors", copy / "run" / "doors", dirs_exist_ok=True, ignore=_sockets
    )
    with gpustack(copy, stack.home, ["--disable-worker"]) as second:
        assert second.state()["children"]["door"]["pid"] != before["children"]["door"]["pid"]
        second.end()
    assert "was copied from another place" in second.output
    assert stack.state()["children"] == before["children"]
    assert all(psutil.pid_exists(child["pid"]) for child in before["children"].values())


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".sock")]


@pytest.mark.parametrize(
    ("wrong", "said", "status"),
    [
        ("log_dir: {file}", "is not a directory", 2),
        ("database_url: postgresql://nobody@127.0.0.1:{port}/x", "127.0.0.1", 1),
    ],
)
def test_settings_that_a_start_would_fail_with_touch_nothing(
    stack: Running, settings: Path, place: Path, wrong: str, said: str, status: int
) -> None:
    (place / "a file").touch()
    before = stack.state()
    settings.write_text(wrong.format(file=place / "a file", port=free_ports(1)[0]) + "\n")

    refused = stack.cli("restart", check=False)

    settings.write_text("debug: false\n")
    assert refused.returncode == status
    assert said in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert stack.state()["children"] == before["children"]


def test_two_restarts_at_once_are_one(stack: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: stack.cli("restart", check=False), range(2)))
    assert [each.returncode for each in both] == [0, 0], [each.stderr for each in both]


def test_what_a_killed_supervisor_leaves_is_shown_and_ended(place: Path) -> None:
    with gpustack(place / "crashed data", place / "crashed home", ["--disable-worker"]) as running:
        running.end(signal.SIGKILL)
        eventually(lambda: len(running.own_processes()) <= 2, "only door and gateway are left")
        shown = running.cli("status", check=False)
        assert shown.returncode == 3
        assert "the gateway and the door of a crash are still here" in shown.stderr
        running.cli("stop")
        assert processes_of(running.data_dir) == []


@pytest.mark.parametrize("by_command", [True, False])
def test_a_run_folder_that_somebody_removed_keeps_nothing_from_ending(place: Path, by_command: bool) -> None:
    data_dir = place / f"removed data {by_command}"
    with gpustack(data_dir, place / "removed home", ["--disable-worker"]) as running:
        shutil.rmtree(data_dir / "run")
        if by_command:
            assert "GPUStack has stopped" in running.cli("stop").stdout
        running.end()
        eventually(lambda: processes_of(data_dir) == [], "all have ended")
