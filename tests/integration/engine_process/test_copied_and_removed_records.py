"""Records that were copied with a data directory tell of nothing here; engines whose records are gone are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpustack.kit.process import identify, pid_space
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.environment import engine_environment
from gpustack.worker.runners.records import (
    EngineRecord,
    find_process,
    read_records,
    record_path,
    unrecorded,
    write_record,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where the engine is written down."""
    return tmp_path / "data" / "run"


@pytest.fixture
def engine(run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the environment and the record of an engine."""
    env = engine_environment(os.environ, instance_id=7, record=str(record_path(run_dir, 7)))
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(120)"],
        env=env, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    who = identify(process.pid)
    assert who is not None
    record = EngineRecord(
        instance_id=7, instance_name="tiny", port=1, log_path="", argv_digest="",
        pid=who.pid, started=who.started, pid_space=pid_space(),
    )  # fmt: skip
    write_record(run_dir, record)
    yield process
    process.kill()
    process.communicate()


def test_a_copied_record_is_nobodys(run_dir: Path, tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir.parent, copy)

    assert read_records(copy / "run") == []
    end_recorded(copy / "run", grace=0.5)

    assert identify(engine.pid) is not None
    assert not record_path(copy / "run", 7).exists()


def test_a_moved_one_is_ours_still(run_dir: Path, tmp_path: Path, engine: subprocess.Popen[bytes]) -> None:
    moved = run_dir.parent.rename(tmp_path / "moved") / "run"
    [record] = read_records(moved)
    assert find_process(moved, record) == identify(engine.pid)


def test_an_engine_is_ended_without_its_record(run_dir: Path, engine: subprocess.Popen[bytes]) -> None:
    assert unrecorded(run_dir) == []
    shutil.rmtree(run_dir)
    assert [each.instance_id for each in unrecorded(run_dir)] == [7]

    end_recorded(run_dir, grace=0.5)

    assert identify(engine.pid) is None
