"""The database away: models answer from memory, the API says so in time, nothing is moved, all comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, eventually, gpustack

pytestmark = pytest.mark.xdist_group("e2e-database-gone")


@pytest.fixture(scope="module")
def serving(place: Path, engine: InstalledEngine, tiny_gguf: Path) -> Iterator[Running]:
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(place / "gone", place / "gone home", flags) as running:
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        yield running


def postgres(running: Running) -> list[psutil.Process]:
    postmaster = psutil.Process(running.state()["children"]["postgres"]["pid"])
    return [postmaster, *postmaster.children()]


def the_instance(client: httpx.Client) -> tuple[int, int, int, str]:
    (instance,) = client.get("/v2/model-instances").json()["items"]
    return instance["id"], instance["pid"], instance["restart_count"], instance["state"]


def chat(client: httpx.Client) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    return client.post("/v1/chat/completions", json=body).status_code


@contextlib.contextmanager
def hanging(running: Running) -> Iterator[None]:
    processes = postgres(running)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.resume()


def test_after_its_death_requests_wait_for_it(serving: Running) -> None:
    with serving.admin() as client:
        before = the_instance(client)
        for _ in range(3):
            restarts = serving.state()["children"]["postgres"]["restarts"]
            postgres(serving)[0].kill()
            for _ in range(20):
                assert client.get("/v2/models").status_code == 200
                assert chat(client) == 200
            eventually(
                lambda was=restarts: serving.state()["children"]["postgres"]["restarts"] > was, "a new one"
            )
        assert client.post("/v2/api-keys", json={"name": "after"}).status_code == 201
        assert the_instance(client) == before


@pytest.mark.slow
def test_a_minute_without_it(serving: Running) -> None:
    began = time.monotonic()
    with serving.admin() as client:
        before = the_instance(client)
        with hanging(serving):
            slowest = 0.0
            while time.monotonic() - began < 60:
                asked = time.monotonic()
                answer = client.get("/v2/models")
                slowest = max(slowest, time.monotonic() - asked)
                assert answer.status_code == 503
                assert answer.headers["Retry-After"]
                assert answer.json()["reason"] == "ServiceUnavailable"
                assert chat(client) == 200
                time.sleep(0.2)
            assert slowest < 30
            server = psutil.Process(serving.state()["children"]["server"]["pid"])
            assert server.memory_info().rss < 400 << 20
            assert len(server.net_connections()) < 100
        eventually(lambda: client.get("/v2/models").status_code == 200, "it answers again")
        eventually(lambda: serving.cli("status", check=False).returncode == 0, "it is ready again")
        time.sleep(30)  # longer than what makes a worker count as lost
        assert the_instance(client) == before
        (worker,) = client.get("/v2/workers").json()["items"]
        assert worker["state"] == "ready"
        assert chat(client) == 200
