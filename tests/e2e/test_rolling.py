"""A model is changed, scaled and deleted while it is asked all the time: nobody notices."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from gpustack.worker.runners.records import read_records
from support.running import Running, eventually

pytestmark = pytest.mark.xdist_group("e2e-rolling")

RATE = 12
SECONDS = 120.0


class Load:
    """Asks at a steady rate from a thread of its own, streams and whole answers in turn, and keeps what went wrong."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self._url, self._model = url, model
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.failed: list[str] = []
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Ask nothing more, and return when all answers are here."""
        self._ending.set()
        self._thread.join(60)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        async with (
            httpx.AsyncClient(
                base_url=self._url, headers=self._headers, timeout=60, limits=limits, trust_env=False
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            count = 0
            due = time.monotonic()
            while not self._ending.is_set():
                group.create_task(self._ask(client, "stream" if count % 2 else "whole"))
                count += 1
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _ask(self, client: httpx.AsyncClient, kind: str) -> None:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 8,
            "stream": kind == "stream",
        }
        began = time.monotonic()
        try:
            if trouble := await self._trouble(client, body):
                self.failed.append(f"{kind}: {trouble} (asked {time.monotonic() - began:.2f} s ago)")
            else:
                self.done[kind] += 1
        except httpx.HTTPError as error:
            self.failed.append(f"{kind}: {error!r} (asked {time.monotonic() - began:.2f} s ago)")

    @staticmethod
    async def _trouble(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            text = (await answer.aread()).decode()
        if answer.status_code != 200:
            return f"{answer.status_code} {text}"
        if body["stream"]:
            # "error" is a token of the model as well.
            return "" if text.endswith("data: [DONE]\n\n") and 'data: {"error"' not in text else text[-300:]
        return "" if json.loads(text)["choices"][0]["message"]["content"] is not None else text


@pytest.fixture(scope="module")
def key(stack: Running) -> str:
    """An API key."""
    return str(json.loads(stack.cli("keys", "create", "rolling", "--json").stdout)["value"])


@pytest.fixture
def admin(stack: Running) -> Iterator[httpx.Client]:
    """An administrator's connection."""
    with stack.admin() as client:
        yield client


def instances(admin: httpx.Client) -> list[dict[str, Any]]:
    return list(admin.get("/v2/model-instances", params={"page": -1}).json()["items"])


def rests(admin: httpx.Client, model: int, replicas: int) -> bool:
    """Tell whether exactly so many instances are there, which all run what the model is now."""
    digest = admin.get(f"/v2/models/{model}").json()["spec_digest"]
    found = instances(admin)
    return len(found) == replicas and all(
        (each["state"], each["spec_digest"], each["draining_since"]) == ("running", digest, None)
        for each in found
    )


def test_changed_scaled_and_deleted_under_load_without_a_failed_request(
    stack: Running, admin: httpx.Client, key: str, tiny_gguf: Path
) -> None:
    wanted: dict[str, Any] = {
        "name": "rolls",
        "local_path": str(tiny_gguf),
        "replicas": 2,
        "backend_parameters": ["--parallel=2"],
    }
    model = admin.post("/v2/models", json=wanted).json()["id"]
    eventually(lambda: rests(admin, model, 2), "two instances run", seconds=SECONDS)
    before = {each["id"] for each in instances(admin)}

    def put(**changes: Any) -> None:
        wanted.update(changes)
        assert admin.put(f"/v2/models/{model}", json=wanted).status_code == 200

    with Load(stack.url, key, "rolls") as load:
        put(backend_parameters=["--parallel=2", "--ctx-size=256"])
        eventually(lambda: rests(admin, model, 2), "the change is rolled out", seconds=SECONDS)
        assert before.isdisjoint(each["id"] for each in instances(admin))
        for replicas in (3, 1):
            put(replicas=replicas)
            eventually(lambda n=replicas: rests(admin, model, n), f"{replicas} run", seconds=SECONDS)
        put(backend_parameters=["--parallel=2", "--no-such-parameter"])
        eventually(lambda: any(each["state"] == "error" for each in instances(admin)), "a bad version fails")
        time.sleep(2)
        put(backend_parameters=["--parallel=2"])
        eventually(lambda: rests(admin, model, 1), "a good one takes its place", seconds=SECONDS)
        assert not load.failed, load.failed[:5]

        assert admin.delete(f"/v2/models/{model}").status_code == 204
        load.end()

    refused = [each for each in load.failed if "404" in each and "model_not_found" in each]
    assert load.failed == refused, [each for each in load.failed if each not in refused][:5]
    assert min(load.done.values()) > RATE
    assert admin.delete(f"/v2/models/{model}").status_code == 404
    assert admin.post("/v2/models", json={**wanted, "replicas": 0}).status_code == 201
    eventually(lambda: not instances(admin), "what drained is gone")
    eventually(lambda: not read_records(stack.data_dir / "run"), "no engine is left")
    stack.cli("rm", "rolls")


@pytest.mark.parametrize("force", [False, True])
def test_an_instance_that_is_deleted_lets_its_requests_end_unless_forced(
    stack: Running, admin: httpx.Client, tiny_gguf: Path, force: bool
) -> None:
    created = admin.post("/v2/models", json={"name": "long", "local_path": str(tiny_gguf)})
    model = created.json()["id"]
    eventually(lambda: rests(admin, model, 1), "it runs", seconds=SECONDS)
    [old] = instances(admin)
    body = json.dumps({"prompt": "x", "max_tokens": 4}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", old["port"]), timeout=60) as client:
        client.sendall(head + body[:5])
        suffix = "?force=true" if force else ""
        assert admin.delete(f"/v2/model-instances/{old['id']}{suffix}").status_code == 204
        if force:
            eventually(lambda: old["id"] not in _ids(admin), "it is gone at once")
            assert client.recv(1) == b""
        else:
            time.sleep(3)
            assert old["id"] in _ids(admin)
            client.sendall(body[5:])
            assert client.recv(12) == b"HTTP/1.1 200"
    eventually(lambda: old["id"] not in _ids(admin), "it is gone")
    eventually(lambda: rests(admin, model, 1), "another one runs", seconds=SECONDS)
    stack.cli("rm", "long")
    eventually(lambda: not instances(admin), "nothing is left")


def _ids(admin: httpx.Client) -> set[int]:
    return {each["id"] for each in instances(admin)}
