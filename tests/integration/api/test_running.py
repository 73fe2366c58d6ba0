from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.db import Feed, Store
from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import listen
from gpustack.server.app import bootstrap, run_server
from gpustack.server.auth.passwords import Passwords
from gpustack.server.config import FIRST_LOGIN_FILE, ServerConfig
from gpustack.server.heartbeats import Heartbeats
from gpustack.server.routing import Routing
from support.api import PASSWORD, a_catalogue


def a_config(data_dir: Path, **fields: Any) -> ServerConfig:
    base: dict[str, Any] = {
        "data_dir": data_dir,
        "bin_dir": data_dir,
        "version": "1",
        "bootstrap_password": PASSWORD,
        "drain": 1.0,
    }
    return ServerConfig(**{**base, **fields})


async def test_the_whole_server_says_when_it_answers_and_stops_on_cancel(
    database_url: str, tmp_path: Path
) -> None:
    ready = asyncio.Event()
    listener = listen(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = asyncio.create_task(
        run_server(a_config(tmp_path), database_url, a_catalogue(), listener, ready.set)
    )
    async with asyncio.timeout(10):
        await ready.wait()
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/readyz")).text == "ok"

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


async def test_a_database_out_of_reach_is_one_line_without_the_password(tmp_path: Path) -> None:
    url = "postgresql://user:sesame@127.0.0.1:1/x"
    with listen(0, host="127.0.0.1") as listener, pytest.raises(GPUStackError) as caught:
        await run_server(a_config(tmp_path, database_wait=0.1), url, a_catalogue(), listener, lambda: None)

    assert "127.0.0.1:1" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [(Routing, "apply"), (Feed, "_hand_out"), (Heartbeats, "flush")],
    ids=["routing", "feed", "heartbeats"],
)
async def test_a_server_that_lost_a_part_ends_so_that_it_is_started_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, name: str
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    listener = listen(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = asyncio.Event()
    running = asyncio.create_task(
        run_server(a_config(tmp_path), database_url, a_catalogue(), listener, ready.set)
    )
    async with asyncio.timeout(10), httpx.AsyncClient(base_url=url) as client:
        await ready.wait()
        monkeypatch.setattr(part, name, broken)
        token = (tmp_path / "token").read_text()
        body = {
            "name": "w",
            "ip": "127.0.0.1",
            "door_token": "d" * 32,
            "worker_uuid": "u" * 8,
            "version": "1",
        }
        answer = await client.post("/v2/workers", json=body, headers={"Authorization": f"Bearer {token}"})
        worker = {"Authorization": f"Bearer {answer.json()['token']}"}
        await client.post("/v2/worker-heartbeat", json={}, headers=worker)
        key = {"Authorization": f"Bearer {(tmp_path / 'run' / 'cli_token').read_text()}"}
        await client.post("/v2/models", json={"name": "m", "local_path": "/m"}, headers=key)

        with pytest.raises(GPUStackError, match="ended unexpectedly"):
            await running


async def test_of_two_servers_on_one_new_database_one_tells_the_password(
    database_url: str, tmp_path: Path
) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    async with await Store.open(database_url) as store:
        await store.migrate()
        for home in homes:
            home.mkdir()
        await asyncio.gather(*(bootstrap(store, a_config(home, bootstrap_password=None)) for home in homes))
        [told] = [home / FIRST_LOGIN_FILE for home in homes if (home / FIRST_LOGIN_FILE).exists()]
        admin = await store.users.by_name("admin")

    assert await Passwords().verify(admin.password_hash, told.read_text().strip())
