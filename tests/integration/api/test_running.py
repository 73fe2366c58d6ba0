from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import listen
from gpustack.server.app import run_server
from gpustack.server.config import ServerConfig
from support.api import PASSWORD, a_catalogue


def a_config(data_dir: Path, **fields: object) -> ServerConfig:
    base = {
        "data_dir": data_dir,
        "bin_dir": data_dir,
        "version": "1",
        "bootstrap_password": PASSWORD,
        "drain": 1.0,
    }
    return ServerConfig(**{**base, **fields})  # type: ignore[arg-type]


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
