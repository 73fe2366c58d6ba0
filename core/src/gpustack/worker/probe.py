"""Asking an engine on loopback whether it answers. Made for being done often: one short connection, no client."""

from __future__ import annotations

import asyncio
import contextlib

from gpustack.kit.net import LOOPBACK

_LONGEST_LINE = 1024


async def answers(port: int, path: str, *, timeout: float) -> bool:
    """Tell whether GET ``path`` gives a status below 300 within ``timeout`` seconds. Never raises for trouble."""
    try:
        async with asyncio.timeout(timeout):
            return await _status(port, path) in range(200, 300)
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        return False


async def _status(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=_LONGEST_LINE)
    try:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
        )
        writer.write(request.encode("latin-1", "replace"))
        await writer.drain()
        line = await reader.readuntil(b"\n")
        parts = line.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/"):
            return 0
        return int(parts[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
