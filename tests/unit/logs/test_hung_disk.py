"""Lines are written in order and to the last one, and a log that takes none holds nobody up."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

LOG = """
import logging, sys, time
from gpustack.kit.logs import configure
configure("role")
count = int(sys.argv[1])
for number in range(count):
    logging.getLogger("thing").info("line %d of %s", number, {"count": count})
print("done", flush=True)
"""


def test_all_lines_are_there_when_the_process_has_ended() -> None:
    done = subprocess.run([sys.executable, "-c", LOG, "3000"], capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert [line.rpartition("thing: ")[2] for line in lines] == [
        f"line {number} of {{'count': 3000}}" for number in range(3000)
    ]


def test_a_log_that_takes_nothing_delays_nothing() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOG, "30000"],
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
            timeout=60,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_wrong_line_harms_nobody() -> None:
    code = LOG.replace('"line %d of %s"', '"line %d of %d"')
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "TypeError" in done.stderr
