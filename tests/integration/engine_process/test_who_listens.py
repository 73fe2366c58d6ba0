"""An engine's port that another program has: what answers there is not the engine."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gpustack.kit.net import holder
from gpustack.worker.probe import answers
from gpustack.worker.runners.listening import intruder

SERVER = "import sys, http.server as h; h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"


@pytest.fixture
def stranger() -> Iterator[Any]:
    """Starts a program that listens on a port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> int:
        command = [sys.executable, "-c", SERVER, str(port)]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1].pid

    yield start
    for each in started:
        each.kill()
        each.wait()


async def test_the_engine_itself_is_no_intruder(place: Any, until: Any) -> None:
    engine = await place.start("ready")
    await until(lambda: holder(engine.record.port))

    assert intruder(engine) == ""


async def test_nobody_listens_yet(place: Any) -> None:
    engine = await place.start("listens on nothing")

    assert intruder(engine) == ""


async def test_another_program_is_named(place: Any, until: Any, stranger: Any) -> None:
    engine = await place.start("listens on nothing")
    pid = stranger(engine.record.port)
    await until(lambda: holder(engine.record.port) == pid)

    # That it answers is why its name matters.
    assert await answers(engine.record.port, "/", timeout=5)
    assert intruder(engine).endswith(f"(process {pid})")
