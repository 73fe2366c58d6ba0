"""A GPUStack whose gateway is a plugin's: a program that the supervisor runs, and a table that the plugin gets."""

from __future__ import annotations

import contextlib
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from gpustack.testing.server import RunningServer, running_gpustack
from support.installed import installed_plugin, search_path

pytestmark = pytest.mark.xdist_group("e2e-gateway-plugin")

#: A gateway whose program hands every byte on to GPUStack's own port. It writes down which table it was given.
PLUGIN = '''
import sys
from pydantic import BaseModel
from gpustack.plugin import Gateway, LaunchPlan, Verdict, hookimpl

SPLICE = """
import asyncio, sys
front, to = map(int, sys.argv[1:])

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def splice(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", to)
    await asyncio.gather(pump(reader, back), pump(there, writer))

async def main():
    await (await asyncio.start_server(splice, "127.0.0.1", front)).serve_forever()

asyncio.run(main())
"""

class FrontSettings(BaseModel):
    front_port: int
    front_to: int

class FrontGateway(Gateway[FrontSettings]):
    name = "front"
    settings_type = FrontSettings
    table = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        self.table = None

    @property
    def public_urls(self):
        return () if self.table is None else (f"http://127.0.0.1:{self.settings.front_port}",)

    def processes(self):
        ports = (str(self.settings.front_port), str(self.settings.front_to))
        return [LaunchPlan(argv=(sys.executable, "-c", SPLICE, *ports))]

    async def apply(self, table, delta):
        self.table = table

    async def health(self):
        return Verdict.no("it has no table") if self.table is None else Verdict.yes()

@hookimpl
def register_gateways():
    return [FrontGateway]
'''


def two_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="module")
def front(place: Path) -> Iterator[tuple[RunningServer, int]]:
    packages = place / "packages"
    packages.mkdir()
    installed_plugin(packages, "front", textwrap.dedent(PLUGIN))
    port, to = two_ports()
    flags = ("--gateway-mode", "front", "--front-port", str(port), "--front-to", str(to))
    env = {"PYTHONPATH": search_path(packages)}
    with running_gpustack(place / "run", *flags, "--port", str(to), "--disable-worker", env=env) as running:
        yield running, port


def names(running: RunningServer, port: int) -> int:
    """Return the status of /v1/models at ``port``; 0 when nobody is there."""
    headers = {"Authorization": f"Bearer {running.api_key}"}
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(
            f"http://127.0.0.1:{port}/v1/models", headers=headers, trust_env=False, timeout=10
        ).status_code
    return 0


def until_answered(running: RunningServer, port: int) -> None:
    deadline = time.monotonic() + 20
    while (status := names(running, port)) != 200:
        assert time.monotonic() < deadline, f"/v1/models got {status}"
        time.sleep(0.05)


def program(port: int) -> psutil.Process:
    (found,) = [each for each in psutil.process_iter() if _words(each)[-2:-1] == [str(port)]]
    return found


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_requests_go_through_the_program(front: tuple[RunningServer, int]) -> None:
    running, port = front
    until_answered(running, port)
    with running.client() as client:
        gateway = client.get("/v2/gateway").json()
    assert gateway["name"] == "front"
    assert gateway["public_urls"] == [f"http://127.0.0.1:{port}"]
    assert gateway["healthy"]
    assert gateway["processes"] == [{"kind": "program", "program": Path(sys.executable).name}]


def test_a_change_reaches_the_plugin(front: tuple[RunningServer, int]) -> None:
    running, _ = front
    with running.client() as client:
        before = client.get("/v2/gateway").json()["version"]
        client.post("/v2/api-keys", json={"name": "another"}).raise_for_status()
        deadline = time.monotonic() + 5
        while (now := client.get("/v2/gateway").json())["version_applied"] <= before:
            assert time.monotonic() < deadline, now
            time.sleep(0.05)


def test_status_names_it(front: tuple[RunningServer, int]) -> None:
    running, port = front
    assert f"Gateway: front serves at http://127.0.0.1:{port}\n" in running.cli("status").stdout


def test_a_program_that_was_killed_is_started_again(front: tuple[RunningServer, int]) -> None:
    running, port = front
    until_answered(running, port)
    killed = program(port)
    killed.kill()
    killed.wait(5)
    until_answered(running, port)
    assert program(port).pid != killed.pid


def test_it_ends_with_gpustack(front: tuple[RunningServer, int]) -> None:
    running, port = front
    until_answered(running, port)
    there = program(port)
    running.cli("stop")
    assert not there.is_running()
    assert names(running, port) == 0
