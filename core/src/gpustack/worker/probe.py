"""Asking an engine on loopback whether it answers. Made for being done often: one short connection, no client."""

from __future__ import annotations

import asyncio
import contextlib

from gpustack.kit.net import LOOPBACK
from gpustack.worker.runners.records import EngineRecord

_LONGEST_LINE = 1024
_LONGEST_ANSWER = 1 << 20


async def ready(record: EngineRecord) -> bool:
    """Tell whether an engine is ready, as its plan says that this is known. Never raises for trouble."""
    if record.ready_path:
        return await answers(record.port, record.ready_path, timeout=record.ready_timeout)
    if record.ready_address is None:
        return True
    host, port = record.ready_address
    try:
        async with asyncio.timeout(record.ready_timeout):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def answers(port: int, path: str, *, timeout: float) -> bool:
    """Tell whether GET ``path`` gives a status below 300 within ``timeout`` seconds. Never raises for trouble."""
    try:
        async with asyncio.timeout(timeout):
            return await _status(port, path) in range(200, 300)
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        return False


async def fetch(port: int, path: str, *, timeout: float) -> str | None:
    """Return what GET ``path`` answers; None for trouble, for a status other than 200, and for more than a megabyte."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=_LONGEST_LINE)
            try:
                # By this version an answer comes in one piece and ends with the connection.
                request = f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
                writer.write(request.encode("latin-1", "replace"))
                await writer.drain()
                answer = await _all_of(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except OSError:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    line = head.split(None, 2)
    if len(line) < 2 or line[1] != b"200":
        return None
    return body.decode("utf-8", "replace")


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the end, nothing when that is too much."""
    found = bytearray()
    while piece := await reader.read(65536):
        found += piece
        if len(found) > _LONGEST_ANSWER:
            return b""
    return bytes(found)


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
