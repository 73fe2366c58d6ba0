"""A large body leaves no memory behind in the process that passed it on."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from io import BytesIO
import psutil
from gpustack.kit.process import give_large_buffers_back
if sys.argv[1] == "given back":
    give_large_buffers_back()
resident = lambda: psutil.Process().memory_info().rss
before = resident()
for _ in range(5):
    written = BytesIO()
    for _ in range(160):
        written.write(bytes(1 << 16))
    body = written.getvalue()
    between = bytes(700)
    del written
    del body
print((resident() - before) >> 20)
"""


def left(mode: str) -> int:
    """Return the MiB that are left of bodies of 10 MB."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allocate otherwise")
def test_what_large_bodies_took_is_given_back() -> None:
    assert left("given back") <= 3
