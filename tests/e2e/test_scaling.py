"""A model that runs nowhere while nobody asks for it, with a real engine, and a model that grows with what is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, eventually, gpustack

pytestmark = pytest.mark.xdist_group("e2e-scaling")

CHAT = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
#: Seconds for an engine to start, on a machine that does much else.
START = 60.0


@pytest.fixture(scope="module")
def served(place: Path, engine: InstalledEngine) -> Iterator[Running]:
    flags = ["--bin-dir", str(engine.bin_dir), "--gateway-concurrency", "2"]
    flags += ["--service-port-range", a_port_range(8)]
    with gpustack(place / "scaling data", place / "scaling home", flags) as running:
        running.cli("deploy", "demo", "--min-replicas", "0", "--idle-seconds", "1")
        yield running


@pytest.fixture(scope="module")
def key(served: Running) -> str:
    return str(json.loads(served.cli("keys", "create", "scaling", "--json").stdout)["value"])


def model(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(running.cli("show", "demo", "--json").stdout)
    return found


def asleep(running: Running) -> bool:
    shown = model(running)
    return shown["replicas"] == 0 and not shown["instances"]


def started(running: Running) -> set[str]:
    """Return the names of all copies that the model has had so far."""
    events = json.loads(running.cli("events", "demo", "--json").stdout)
    return {each["instance_name"] for each in events if each["what"] == "created"}


def client(running: Running, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=running.url, headers={"authorization": f"Bearer {key}"}, timeout=httpx.Timeout(START)
    )


def test_the_last_copy_ends_when_nobody_asks_and_the_next_request_starts_one(
    served: Running, key: str
) -> None:
    eventually(lambda: asleep(served), "the model is asleep", seconds=START)
    with client(served, key) as asking:
        assert [each["id"] for each in asking.get("/v1/models").json()["data"]] == ["demo"]
        answer = asking.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert float(answer.headers["x-queue-time"]) > 0.1
        # Now it runs, and does not keep anybody waiting.
        assert "x-queue-time" not in asking.post("/v1/chat/completions", json=CHAT).headers


def test_many_requests_at_once_wait_for_one_start_and_all_are_answered(served: Running, key: str) -> None:
    eventually(lambda: asleep(served), "the model is asleep", seconds=START)

    async def all_of_them() -> list[int]:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=START) as asking:
            answers = await asyncio.gather(
                *(asking.post("/v1/chat/completions", json={**CHAT, "stream": n % 2 == 0}) for n in range(12))
            )
        return [each.status_code for each in answers]

    before = started(served)
    assert asyncio.run(all_of_them()) == [200] * 12
    assert len(started(served) - before) == 1


def test_who_asks_while_the_server_is_down_is_answered_once_it_is_back(served: Running, key: str) -> None:
    eventually(lambda: asleep(served), "the model is asleep", seconds=START)
    os.kill(served.state()["children"]["server"]["pid"], signal.SIGKILL)
    with client(served, key) as asking:
        answer = asking.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text


def test_who_has_waited_for_the_limit_is_told_when_to_come_again(served: Running, key: str) -> None:
    eventually(lambda: asleep(served), "the model is asleep", seconds=START)
    served.cli("update", "demo", "--start-seconds", "0.5", "--no-wait")
    server = served.state()["children"]["server"]["pid"]
    time.sleep(1.0)  # the change reaches the gateways
    os.kill(server, signal.SIGSTOP)
    try:
        with client(served, key) as asking:
            answer = asking.post("/v1/chat/completions", json=CHAT)
    finally:
        os.kill(server, signal.SIGCONT)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "did not start within" in answer.json()["error"]["message"]


def long_request(asking: httpx.Client) -> int:
    longer = {**CHAT, "max_tokens": 400, "ignore_eos": True}
    return asking.post("/v1/chat/completions", json=longer).status_code


def asked_until(served: Running, key: str, condition: Callable[[], bool], what: str, at_once: int) -> None:
    """Keep so many long requests in flight until ``condition`` holds; none of them may fail."""
    done = threading.Event()
    with client(served, key) as asking, ThreadPoolExecutor(at_once) as pool:

        def ask() -> set[int]:
            found = set()
            while not done.is_set():
                found.add(long_request(asking))
            return found

        asked = [pool.submit(ask) for _ in range(at_once)]
        try:
            eventually(condition, what, seconds=2 * START)
        finally:
            done.set()
        assert {status for each in asked for status in each.result()} == {200}


@pytest.mark.slow
def test_more_requests_make_more_copies_and_fewer_end_them_again(served: Running, key: str) -> None:
    served.cli(
        "update", "demo", "--start-seconds", "600", "--max-replicas", "2", "--scale-outstanding", "2",
        "--scale-up-seconds", "0.5", "--scale-down-seconds", "1", "--idle-seconds", "600", "--no-wait",
    )  # fmt: skip

    def ready() -> int:
        return int(model(served)["ready_replicas"])

    asked_until(served, key, lambda: ready() == 2, "a second copy runs", at_once=4)
    eventually(lambda: ready() == 1, "one copy is enough", seconds=START)


@pytest.mark.slow
def test_full_caches_make_more_copies(served: Running, key: str) -> None:
    """What llama.cpp says of its slots reaches the server with the heartbeats."""
    served.cli(
        "update", "demo", "--scale-outstanding", "0", "--scale-kv-cache", "1", "--max-replicas", "2",
        "--scale-up-seconds", "0", "--no-wait",
    )  # fmt: skip
    asked_until(served, key, lambda: model(served)["replicas"] == 2, "two copies are wanted", at_once=4)
