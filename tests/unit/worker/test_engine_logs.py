"""Logs of engines: bounded in size, and read from the end without reading all."""

import os
import time
from pathlib import Path

import pytest

from gpustack.worker.runners import logfile
from gpustack.worker.runners.logfile import LogReader, cap, open_fresh


def all_of(reader: LogReader) -> bytes:
    pieces = []
    while piece := reader.read():
        pieces.append(piece)
    return b"".join(pieces)


def test_a_log_that_is_too_large_begins_anew_and_its_engine_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    writer = open_fresh(path)
    os.write(writer, b"x" * 100)

    with LogReader(path) as reader:
        assert len(all_of(reader)) == 100
        cap(path, limit=100)
        assert path.stat().st_size == 100

        cap(path, limit=99)
        os.write(writer, b"after\n")

        assert path.read_bytes() == b"after\n"
        assert path.with_name(logfile.OLDER).read_bytes() == b"x" * 100
        # Whoever follows it goes on with what is new.
        assert all_of(reader) == b"after\n"
    os.close(writer)


def test_a_start_afresh_leaves_no_older_part(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.with_name(logfile.OLDER).write_text("old")

    os.close(open_fresh(path))

    assert not path.with_name(logfile.OLDER).exists()


def test_no_log_is_nothing_to_do(tmp_path: Path) -> None:
    cap(tmp_path / "engine.log", limit=1)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("tail", [1, 2, 999, 1000, 1001, 5000])
def test_the_last_lines(tmp_path: Path, tail: int, ended: bool) -> None:
    lines = [b"line %d %s\n" % (n, b"." * 200) for n in range(1000)]
    if not ended:
        lines[-1] = lines[-1].rstrip()
    path = tmp_path / "engine.log"
    path.write_bytes(b"".join(lines))

    with LogReader(path) as reader:
        reader.skip_to(tail)
        assert all_of(reader) == b"".join(lines[-tail:])


def test_looking_for_the_last_lines_ends(tmp_path: Path) -> None:
    """A progress bar makes one endless line."""
    path = tmp_path / "engine.log"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    began = time.monotonic()

    with LogReader(path) as reader:
        reader.skip_to(10)
        first = reader.read()

    assert len(first) > 0
    assert time.monotonic() - began < 2
