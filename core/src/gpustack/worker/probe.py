"""Asking an engine on loopback whether it answers. Made for being done often: one short connection, no client."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from gpustack.kit.net import LOOPBACK
from gpustack.worker.runners.records import EngineRecord

_LONGEST_LINE = 1024
_LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """What an engine answered."""

    ready: bool
    #: The status by which it refuses the path it is asked at, as servers refuse what they do not have; else 0.
    refusal: int = 0


async def look(record: EngineRecord) -> Look:
    """Return whether an engine is ready, as its plan says that this is known. Never raises for trouble."""
    if record.ready_path:
        status = await _asked(record.port, record.ready_path, timeout=record.ready_timeout)
        return Look(status in range(200, 300), status if status in range(400, 500) else 0)
    return Look(await _listens(record))


async def _listens(record: EngineRecord) -> bool:
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
    return await _asked(port, path, timeout=timeout) in range(200, 300)


async def _asked(port: int, path: str, *, timeout: float) -> int:
    """Return the status of GET ``path``; 0 for trouble."""
    try:
        async with asyncio.timeout(timeout):
            return await _status(port, path)
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError):
        return 0


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
