"""A worker whose clock is wrong by ten minutes, and then by ten the other way, does all that others do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support import clock
from support.clock import Clock, a_clock
from support.engine import InstalledEngine
from support.running import Running, a_port_range, eventually, gpustack

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e-clock")]

TEN_MINUTES = 600


@pytest.fixture(scope="module")
def wrong(place: Path) -> Clock:
    if why := clock.why_not():
        pytest.skip(why)
    return a_clock(place, -TEN_MINUTES)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Running]:
    with gpustack(place / "clock server", place / "clock home", ["--disable-worker"]) as running:
        yield running


@pytest.fixture(scope="module")
def worker(server: Running, place: Path, engine: InstalledEngine, wrong: Clock) -> Iterator[Running]:
    flags = ["--server-url", server.url, "--token-file", str(server.data_dir / "token")]
    flags += ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(place / "clock worker", place / "clock worker home", flags, env=wrong.env) as running:
        yield running


def _only(api: httpx.Client, path: str) -> dict[str, Any]:
    [found] = api.get(path).json()["items"]
    return dict(found)


def test_the_clock_is_as_wrong_as_it_is_meant_to_be(wrong: Clock) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={**os.environ, **wrong.env},
        capture_output=True,
        text=True,
        check=True,
    )

    assert abs(float(said.stdout) + TEN_MINUTES - time.time()) < 120


def test_it_joins_serves_and_adopts_its_engine_after_a_crash(
    server: Running, worker: Running, wrong: Clock, tiny_gguf: Path
) -> None:
    server.cli("deploy", str(tiny_gguf), "--name", "tiny")
    with server.admin() as api:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert api.post("/v1/chat/completions", json=body).status_code == 200
        before = _only(api, "/v2/model-instances")
        # Somebody sets the clock while all of it runs, and by twenty minutes.
        wrong.set(TEN_MINUTES)
        crashed = worker.state()["children"]["worker"]["pid"]
        os.kill(crashed, signal.SIGKILL)

        def adopted() -> bool:
            child = worker.state()["children"]["worker"]
            return child["state"] == "ready" and child["pid"] != crashed

        eventually(adopted, "another worker is ready", seconds=60)
        heard = _only(api, "/v2/workers")["heartbeat_time"]
        eventually(
            lambda: _only(api, "/v2/workers")["heartbeat_time"] != heard, "it is heard again", seconds=40
        )
        after = _only(api, "/v2/model-instances")
        seen = _only(api, "/v2/workers")

        assert seen["state"] == "ready"
        assert (after["state"], after["pid"], after["restart_count"]) == ("running", before["pid"], 0)
        assert api.post("/v1/chat/completions", json=body).status_code == 200
