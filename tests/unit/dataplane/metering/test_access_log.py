from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from gpustack.dataplane.metering.access_log import AccessLog, Line


def a_line(request_id: str) -> Line:
    return Line(
        time=1795775340.1234,
        request_id=request_id,
        method="POST",
        path="/v1/é\n",
        status=200,
        duration=0.5,
        user="x",
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def until(condition: object) -> None:
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_each_request_is_one_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    with AccessLog(path) as log:
        log.write(a_line("a"))
        log.write(a_line("b"))

    assert lines(path) == [
        {"time": "2026-11-27T10:29:00.123Z", "request_id": each, "method": "POST", "path": "/v1/é\n", "status": 200, "duration": 0.5, "user": "x"}
        for each in ("a", "b")
    ]  # fmt: skip


def test_it_is_rotated_by_size_and_old_files_go(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with AccessLog(path, size=1, keep=2) as log:
        for n in range(5):
            log.write(a_line(str(n)))
            until(lambda n=n: lines(tmp_path / "access.log.1")[0]["request_id"] == str(n) if (tmp_path / "access.log.1").exists() else False)  # fmt: skip

    assert [lines(tmp_path / name)[0]["request_id"] for name in ("access.log.1", "access.log.2")] == [
        "4",
        "3",
    ]
    assert sorted(path.name for path in tmp_path.glob("access*")) == [
        "access.log.1",
        "access.log.2",
    ]


def test_two_processes_write_one_file_and_follow_each_others_rotation(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with AccessLog(path, size=2000, keep=99) as one, AccessLog(path, size=2000, keep=99) as other:
        for n in range(100):
            one.write(a_line(f"a{n}"))
            other.write(a_line(f"b{n}"))
            if n % 10 == 0:
                time.sleep(0.012)

    seen = [str(line["request_id"]) for found in tmp_path.glob("access.log*") for line in lines(found)]
    assert sorted(seen) == sorted(f"{who}{n}" for who in "ab" for n in range(100))


def test_a_disk_that_takes_nothing_for_a_while_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "logs"
    path = folder / "access.log"
    with AccessLog(path) as log:
        folder.rmdir()
        log.write(a_line("a"))
        until(lambda: "cannot be written" in caplog.text)
        folder.mkdir()
        log.write(a_line("b"))
        until(lambda: path.exists() and len(lines(path)) == 2)
