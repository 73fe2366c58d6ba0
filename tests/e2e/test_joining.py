"""A second GPUStack joins the first as its worker: what it says when it cannot, and what it needs when it comes again."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.running import (
    Running,
    a_port_range,
    eventually,
    free_ports,
    gpustack,
    processes_of,
    spawn,
    wait_ready,
)

pytestmark = pytest.mark.xdist_group("e2e-joining")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Running]:
    with gpustack(place / "joining server", place / "joining home", ["--disable-worker"]) as running:
        yield running


@pytest.fixture
def workers(place: Path, server: Running) -> Iterator[Any]:
    """Start workers without waiting: ``workers("name", url, TOKEN=…)``; all are ended with the test."""
    started: list[Path] = []

    def start(name: str, *flags: str, url: str = server.url, token: str = "") -> Running:
        data_dir = place / f"worker {name}"
        started.append(data_dir)
        env = {"GPUSTACK_TOKEN": token} if token else {}
        given = ["--server-url", url, "--service-port-range", a_port_range(2), *flags]
        return spawn(data_dir, place / f"worker home {name}", given, env=env)

    yield start
    for data_dir in started:
        for process in processes_of(data_dir):
            with contextlib.suppress(psutil.Error):
                process.kill()


def token_of(server: Running) -> str:
    return (server.data_dir / "token").read_text()


def told(running: Running, words: str, *, seconds: float = 60) -> None:
    """Read what it says until ``words`` are in it."""
    assert running.process.stdout is not None
    fd, deadline = running.process.stdout.fileno(), time.monotonic() + seconds
    while words not in running.output:
        assert time.monotonic() < deadline, running.output
        if select.select([fd], [], [], 1)[0]:
            chunk = os.read(fd, 65536)
            assert chunk, running.output
            running.output += chunk.decode()


def the_end(running: Running) -> str:
    """Return its last words: one line, and exit status 1."""
    rest, _ = running.process.communicate(timeout=90)
    running.output += rest.decode()
    assert running.process.returncode == 1, running.output
    [line] = [each for each in running.output.splitlines() if each.startswith("Error: ")]
    assert not processes_of(running.data_dir)
    return line


@pytest.mark.slow
def test_it_waits_for_its_server_and_says_so(server: Running, workers: Any, place: Path) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    early = workers("early", url=url, token="the-shared-secret-of-this-test")
    told(early, f"cannot reach {url}")
    assert early.process.poll() is None

    env = {"GPUSTACK_TOKEN": "the-shared-secret-of-this-test"}
    with gpustack(place / "late", place / "late home", ["--disable-worker"], port=port, env=env) as late:
        wait_ready(early)
        with late.admin() as api:
            assert len(api.get("/v2/workers").json()["items"]) == 1
        assert early.end() == 0


def test_what_is_no_gpustack_ends_it_with_a_line(workers: Any) -> None:
    class Somebody(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Somebody) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{stranger.server_port}"
        line = the_end(workers("astray", url=url, token="any"))
        stranger.shutdown()

    assert f"{url} answered 404" in line
    assert "is it a GPUStack server?" in line


@pytest.mark.slow
def test_the_token_may_be_gone_once_it_has_joined_until_it_is_removed(
    server: Running, workers: Any, place: Path
) -> None:
    file = place / "a copy of the token"
    file.write_text(token_of(server))
    wait_ready(workers("again", "--token-file", str(file))).end()
    file.unlink()

    again = wait_ready(workers("again", "--token-file", str(file)))
    token = token_of(server)
    for process in processes_of(again.data_dir):
        assert token not in " ".join(process.cmdline())
    with server.admin() as api:
        [worker] = api.get("/v2/workers").json()["items"]
        assert api.delete(f"/v2/workers/{worker['id']}").status_code == 204

    # Its engines may be serving, so it stays, says what is wrong, and a restart with the token mends it.
    told(again, "does not know this worker any more")
    assert "--token-file" in again.output
    assert again.process.poll() is None
    file.write_text(token)
    again.cli("restart")
    with server.admin() as api:
        assert [each["id"] for each in api.get("/v2/workers").json()["items"]] != [worker["id"]]
    assert again.end() == 0


@pytest.mark.slow
def test_a_copied_data_directory_becomes_another_worker(server: Running, workers: Any, place: Path) -> None:
    original = wait_ready(workers("original", "--worker-name", "box", token=token_of(server)))
    with server.admin() as api:

        def boxes() -> dict[str, Any]:
            items = api.get("/v2/workers").json()["items"]
            return {each["name"]: each for each in items if each["name"].startswith("box")}

        before = boxes()["box"]
        shutil.copytree(
            original.data_dir,
            place / "worker copy",
            ignore=lambda folder, names: [
                name
                for name in names
                if not (Path(folder) / name).is_dir() and not (Path(folder) / name).is_file()
            ],
        )
        copy = workers("copy", "--worker-name", "box", token=token_of(server))
        told(copy, "was its data directory copied?")
        told(copy, "Joining as a new worker", seconds=90)
        wait_ready(copy)

        found = boxes()
        assert set(found) == {"box", "box-1"}
        assert found["box"]["id"] == before["id"]
        assert found["box"]["worker_uuid"] == before["worker_uuid"] != found["box-1"]["worker_uuid"]
        heard = found["box"]["heartbeat_time"]
        eventually(lambda: boxes()["box"]["heartbeat_time"] != heard, "the original is heard", seconds=40)
    assert original.end(signal.SIGTERM) == 0
    assert copy.end(signal.SIGTERM) == 0
