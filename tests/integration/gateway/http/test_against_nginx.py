"""The same bytes through nginx: what we send on, it sends on as the same."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.http_bytes import ACCEPTED

from .conftest import SOON, Client, request_of

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which(
    "nginx"
)

#: What we take and nginx does not, and why that is right.
ONLY_OURS = {
    "star": "a server answers OPTIONS *; a gateway may send it on",
    "RTSP": "the parser does not tell it from HTTP/1.0; it is sent on as HTTP/1.1",
}

_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
    fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{engine}; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""


class _Recording:
    """An engine that answers everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []

    async def __call__(self, client: Client) -> None:
        while True:
            head, body = await request_of(client)
            if b"transfer-encoding" in head.lower():
                self.seen.append((head.split(b" ")[1], b"not understood"))
                return
            self.seen.append((head.split(b" ")[1], body))
            await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@contextlib.asynccontextmanager
async def _nginx(folder: Path, engine: int) -> AsyncIterator[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(folder=folder, port=port, engine=engine))
    command = (
        str(NGINX),
        "-p",
        str(folder),
        "-e",
        str(folder / "error.log"),
        "-c",
        str(folder / "nginx.conf"),
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        async with asyncio.timeout(SOON):
            while True:
                with contextlib.suppress(ConnectionError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.kill()
        await process.wait()


async def _seen(port: int, data: bytes, recording: _Recording, expected: int) -> list[tuple[bytes, bytes]]:
    """Send ``data``, and return what the engine saw of it, once that is as much as it should be."""
    recording.seen = []
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    await client.send(data)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while len(recording.seen) < expected:
                await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)
    client.close()
    return recording.seen


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed on this machine")
async def test_nginx_and_we_see_the_same_requests(lab, tmp_path):
    ours = await lab.gateway()
    ours.sends_all_on = True
    recording = _Recording()
    ours.engine = await lab.engine(recording)
    differences = []
    async with _nginx(tmp_path, ours.engine[1]) as port:
        for name in ACCEPTED.keys() - ONLY_OURS.keys():
            data, bodies = ACCEPTED[name]
            by_us = await _seen(ours.port, data, recording, len(bodies))
            by_nginx = await _seen(port, data, recording, len(bodies))
            if by_us != by_nginx or [body for _, body in by_us] != list(bodies):
                differences.append((name, by_us, by_nginx))
    assert differences == []
