"""A container's first process: status, signals, orphans, and a program that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpustack.kit import init
from support.running import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containers are Linux")

INIT = [sys.executable, "-I", "-S", init.__file__]


def start(script: str, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, *INIT, "/bin/sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_its_status_is_the_programs() -> None:
    with start("exit 7") as process:
        assert process.wait(30) == 7


def test_signals_are_handed_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start(f"trap 'echo told; exit 5' TERM; : >'{ready}'; while :; do sleep 0.05; done") as process:
        eventually(ready.exists, "the program runs", seconds=30)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert (process.returncode, said) == (5, "told\n")


def test_the_program_has_its_signals_as_if_started_by_a_shell() -> None:
    with start("cat /proc/self/status") as process:
        said, _ = process.communicate(timeout=30)
    masks = dict(line.split(":\t") for line in said.splitlines() if line.startswith(("SigBlk", "SigIgn")))
    # The two after the 31 of Unix are the C library's own, which it sets as it needs them.
    # What these tests were started with, as by nohup, is nobody's doing here.
    inherited = 1 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 0
    ignored = int(masks["SigIgn"], 16) & ~inherited
    assert {mask & 0x7FFFFFFF for mask in (int(masks["SigBlk"], 16), ignored)} == {0}


def test_a_killed_program_is_started_again_but_not_for_ever(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with start(f"echo >>'{count}'; kill -9 $$") as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert len(count.read_text().splitlines()) == init.ATTEMPTS + 1
    assert said.splitlines() == ["gpustack was killed by signal 9; starting it again"] * init.ATTEMPTS


def test_a_program_that_was_asked_to_end_is_not_started_again(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with start(f": >'{ready}'; exec sleep 60") as process:
        eventually(ready.exists, "the program runs", seconds=30)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + signal.SIGTERM, "")


@pytest.mark.root
def test_orphans_are_reaped_by_the_first_process() -> None:
    if os.geteuid() != 0:
        pytest.skip("a process space of one's own needs root")
    script = "(true & exec true); i=0; while cat /proc/[0-9]*/stat | grep -q ' Z ' && [ $i -lt 100 ]; do "
    script += "i=$((i+1)); sleep 0.1; done; cat /proc/[0-9]*/stat | grep -c ' Z '; cat /proc/1/cmdline"
    with start(script, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child") as process:
        said, _ = process.communicate(timeout=60)
    zombies, first = said.split("\n", 1)
    assert zombies == "0"
    assert init.__file__ in first


def test_elsewhere_nothing_happens() -> None:
    init.serve_as_init()
