"""What server and gateway say to each other: no bytes make either fail otherwise than they expect."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from gpustack.dataplane.table import wire
from gpustack.dataplane.table.copy import TableCopy, TableFile
from gpustack.plugin.routing import Principal, Route, Target, UsageRecord

#: What a link, and the server's side of one, take for the end of a connection.
EXPECTED = (OSError, EOFError, ValueError, msgspec.MsgspecError)
_FORM = b"gpustack routing table 1\n"
WORDS = (
    *(b"\x81\xa4type", b"\xa5Begin", b"\xa4Part", b"\xa5Whole", b"\xa6Change", b"\xa4Kept", b"\xa5Hello", b"\xa7Metered"),
    *(b"\xa6routes", b"\xaaprincipals", b"\xa7version", b"\xa6number", b"\x00\x00\x00\x10", b"\xdf\xff\xff\xff\xff"),
    *(b"\x91" * 8, b"\x80", b"\x90", b"\xc0", b"\xca\x7f\xc0\x00\x00", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", _FORM),
)  # fmt: skip


def seeds() -> Iterable[bytes]:
    """Return conversations, and a file."""
    route = Route(
        name="tiny", created=5, targets=(Target(instance_id=1, host="a", port=2),), aliases=("gpt-4",)
    )
    key = Principal(user_id=1, username="alice", key_id=7, allowed=frozenset({"tiny"}))
    change = wire.Change(3, {"tiny": route}, ["gone"], {"d": key}, ["e"])
    told = [
        wire.Begin(1), wire.Part({"tiny": route}, {}), wire.Part({}, {"d": key}), wire.Change(2, {}, ["tiny"]),
        wire.Whole(2), change, wire.Kept(4),
    ]  # fmt: skip
    yield b"".join(map(wire.framed, told))
    said = [
        wire.Hello(7, "1.0"),
        wire.Metered(1, (UsageRecord(id="a", at=1.5, model="m"),)),
        wire.Wake("tiny"),
    ]
    yield b"".join(map(wire.framed, said))
    yield b"\xff\xff\xff\xff"
    yield _FORM + wire.encode(change)
    yield wire.framed(wire.Whole(1)) + wire.framed(wire.Begin(1)) * 2
    nested = b"\x83\xa4type\xa4Kept\xa6number\x01\xa1x" + b"\x91" * 3000 + b"\xc0"
    yield len(nested).to_bytes(4, "big") + nested


def run(data: bytes) -> None:
    """Say ``data`` to either side, and have it as the file."""
    for decode in (wire.from_server, wire.from_gateway):
        copy = TableCopy(lambda table, changed: None)
        with contextlib.suppress(*EXPECTED):
            for message in _messages(data, decode):
                again = decode(wire.encode(message))
                assert again == message or "nan" in repr(message), "said again, it is something else"
                copy.take(message)
                _consistent(copy)
    _as_file(data)
    _as_file(_FORM + data)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _messages(data: bytes, decode: Callable[[bytes], Any]) -> Iterable[Any]:
    stream = asyncio.StreamReader(limit=wire.LONGEST, loop=_loop())
    stream.feed_data(data)
    stream.feed_eof()
    while True:
        try:
            wire.read(stream).send(None)  # everything is there: it waits for nothing
        except StopIteration as done:
            yield decode(done.value)


def _consistent(copy: TableCopy) -> None:
    table = copy.table
    assert all(isinstance(each, Route) for each in table.routes.values())
    assert all(isinstance(each, Principal) for each in table.principals.values())
    parts = list(wire.parts_of(table))
    assert {name for part in parts for name in part.routes} == set(table.routes)


@cache
def _file() -> Path:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="gpustack-fuzz-", dir=memory)) / "table"


def _as_file(data: bytes) -> None:
    _file().write_bytes(data)
    copy = TableCopy(lambda table, changed: None)
    if not TableFile(_file(), copy).load():
        assert copy.version == 0
        assert not copy.table.routes
    assert not copy.fresh
