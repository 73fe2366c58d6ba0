"""The gateway processes of a real GPUStack, and the server in their place."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.engine import InstalledEngine
from support.running import Running, gpustack

pytestmark = pytest.mark.xdist_group("e2e-gateway")

CHAT = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def served(place: Path, engine: InstalledEngine) -> Iterator[Running]:
    flags = ["--bin-dir", str(engine.bin_dir), "--gateway-concurrency", "2"]
    with gpustack(place / "gateway data", place / "gateway home", flags) as running:
        running.cli("deploy", "demo")
        yield running


def key_of(running: Running, name: str) -> str:
    return str(json.loads(running.cli("keys", "create", name, "--json").stdout)["value"])


async def ask(url: str, key: str) -> int:
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        return (await client.post("/v1/chat/completions", json=CHAT)).status_code


def test_a_key_works_and_stops_working_within_a_second_under_load(served: Running) -> None:
    key = key_of(served, "load")

    async def under_load() -> tuple[list[int], list[float]]:
        done = asyncio.Event()
        statuses: list[int] = []

        async def keep_asking() -> None:
            while not done.is_set():
                statuses.append(await ask(served.url, key))

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        took = []
        with served.admin() as admin:
            for number in range(3):
                made = (
                    await asyncio.to_thread(admin.post, "/v2/api-keys", json={"name": f"k{number}"})
                ).json()
                took.append(await until(served.url, made["value"], 200))
                await asyncio.to_thread(admin.delete, f"/v2/api-keys/{made['id']}")
                took.append(await until(served.url, made["value"], 401))
        done.set()
        await asyncio.gather(*asking)
        return statuses, took

    statuses, took = asyncio.run(under_load())
    assert set(statuses) == {200}
    assert max(took) < 1.0, took


async def until(url: str, key: str, status: int) -> float:
    """Return the seconds until ten requests in a row, whichever process takes them, are answered with ``status``."""
    began, row, since = time.monotonic(), 0, time.monotonic()
    while row < 10:
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
            if (await client.get("/v1/models")).status_code == status:
                row += 1
            else:
                row, since = 0, time.monotonic()
        assert time.monotonic() - began < 20
    return since - began


def test_what_the_gateway_counts_is_on_the_servers_metrics_endpoint(served: Running) -> None:
    with served.admin() as admin:
        text = admin.get("/metrics").text
    assert 'gpustack_gateway_requests_total{model="demo",status="200"}' in text
    assert httpx.get(f"{served.url}/metrics").status_code == 401


def test_the_access_log_has_a_line_for_each_request_and_no_key(served: Running) -> None:
    key = key_of(served, "logged")
    assert asyncio.run(ask(served.url, key)) == 200
    time.sleep(0.2)
    text = (served.data_dir / "log" / "access.log").read_text()
    line = json.loads(text.splitlines()[-1])
    assert (line["path"], line["status"], line["user"], line["model"]) == (
        "/v1/chat/completions",
        200,
        "admin",
        "demo",
    )
    assert line["completion_tokens"] == 3
    assert key not in text


def test_without_gateway_processes_the_server_carries_the_requests(
    place: Path, engine: InstalledEngine
) -> None:
    flags = ["--bin-dir", str(engine.bin_dir), "--gateway-mode", "disabled"]
    with gpustack(place / "plain data", place / "plain home", flags) as running:
        assert not any(name.startswith("gateway") for name in running.state()["children"])
        running.cli("deploy", "demo")
        key = key_of(running, "plain")
        assert asyncio.run(ask(running.url, key)) == 200
        with httpx.stream(
            "POST",
            f"{running.url}/v1/chat/completions",
            json={**CHAT, "stream": True},
            headers={"authorization": f"Bearer {key}"},
        ) as answer:
            assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]
        with running.admin() as admin:
            assert "gpustack_gateway_requests_total" in admin.get("/metrics").text
