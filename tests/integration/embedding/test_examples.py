"""The programs of examples/embedding and of docs/embedding.md do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.embedding import EmbeddedServer
from support.running import eventually, free_ports

ROOT = Path(__file__).parents[3]


def program(name: str, server: EmbeddedServer, tools: Any) -> Any:
    module = tools.example(name)
    return module.Site(server) if name == "plain_asgi" else module.create_app(server)


async def use(url: str, data_dir: Path, name: str, tools: Any) -> None:
    """Do what a person would with a running example."""
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/")).json() == {"GPUStack": "/gpustack"}
        key = {"Authorization": f"Bearer {(data_dir / 'run' / 'cli_token').read_text()}"}
        model = {"name": f"m-{name}".replace("_", "-"), "local_path": "/m.gguf", "replicas": 0}
        made = await http.post("/gpustack/v2/models", json=model, headers=key)
        assert made.status_code == 201, made.text
        number = made.json()["id"]

        async def joined() -> bool:
            workers = (await http.get("/gpustack/v2/workers", headers=key)).json()["items"]
            return [each["state"] for each in workers] == ["ready"]

        async def seen() -> bool:
            return f"model {number} created" in (await http.get("/seen")).json()

        await tools.until(joined)
        await tools.until(seen)
        if name == "with_litestar":
            assert (await http.get("/models")).json() == [model["name"]]
        assert (await http.get("/gpustack/docs")).status_code == 200
        assert (await http.delete(f"/gpustack/v2/models/{number}", headers=key)).status_code in (200, 204)


@pytest.mark.parametrize("name", ["plain_asgi", "with_litestar"])
def test_an_example_runs_twice_in_one_process(
    name: str,
    new_database: Callable[[], str],
    tmp_path: Path,
    leaving_nothing: Callable[[Callable[[], Any]], None],
    tools: Any,
) -> None:
    server = EmbeddedServer(data_dir=tmp_path, database_url=new_database(), settings=tools.settings)

    async def once() -> None:
        async with tools.hosted(program(name, server, tools)) as url:
            await use(url, tmp_path, name, tools)
        assert tools.others() == set()

    for _ in range(2):
        leaving_nothing(lambda: asyncio.run(once()))


def test_both_examples_run_at_once(
    new_database: Callable[[], str],
    tmp_path: Path,
    leaving_nothing: Callable[[Callable[[], Any]], None],
    tools: Any,
) -> None:
    servers = {
        name: EmbeddedServer(data_dir=tmp_path / name, database_url=new_database(), settings=tools.settings)
        for name in ("plain_asgi", "with_litestar")
    }

    async def one(name: str, server: EmbeddedServer) -> None:
        async with tools.hosted(program(name, server, tools)) as url:
            await use(url, tmp_path / name, name, tools)

    async def both() -> None:
        await asyncio.gather(*(one(name, server) for name, server in servers.items()))
        assert tools.others() == set()

    leaving_nothing(lambda: asyncio.run(both()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("plain_asgi", signal.SIGINT), ("with_litestar", signal.SIGTERM)]
)
def test_a_signal_to_its_own_process_ends_an_example(
    name: str, number: int, new_database: Callable[[], str], tmp_path: Path, tools: Any
) -> None:
    [port] = free_ports(1)
    command = [sys.executable, f"examples/embedding/{name}.py", tmp_path, new_database(), str(port)]
    env = dict(os.environ)
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: _answers(port), "it answers", seconds=30)
            key = {"Authorization": f"Bearer {(tmp_path / 'run' / 'cli_token').read_text()}"}
            watch = {"watch": "true"}
            url = f"http://127.0.0.1:{port}/gpustack/v2/models"
            with httpx.stream("GET", url, params=watch, headers=key) as answer:
                assert answer.status_code == 200
                process.send_signal(number)
                said = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert "Application shutdown complete" in said
    assert not (tmp_path / "run" / "cli_token").exists(), "its server was left without an end"


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/gpustack/readyz").text == "ok"
    return False


async def test_an_example_that_cannot_start_says_why(tmp_path: Path, tools: Any) -> None:
    server = EmbeddedServer(data_dir=tmp_path, settings={"port": 1})
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(Exception, match="port"):
        await program("plain_asgi", server, tools)({"type": "lifespan"}, receive, send)

    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "port: the program that mounts the server listens" in sent[0]["message"]


def test_the_program_of_the_document_runs(new_database: Callable[[], str], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "DATA_DIR": str(tmp_path), "DATABASE": new_database()},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "model created tiny"
    assert done.stderr == ""
