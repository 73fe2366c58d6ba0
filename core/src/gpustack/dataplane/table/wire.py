"""What server and gateways say to each other over a local socket: MessagePack, each message after its length.

A gateway says :class:`Hello` and gets the whole table in parts, so that neither side stands still for long, then every
change. It sends what it metered, and gets a word for each batch that is safe; and how much there is to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import msgspec

from gpustack.plugin.routing import Principal, Route, RoutingTable, UsageRecord

T = TypeVar("T")

#: Bytes of one message. The parts of a table are far below.
LONGEST = 16 << 20
#: Routes or principals in one part: about a millisecond of work.
_PART = 500
_SIZE = 4


class Hello(msgspec.Struct, tag=True, frozen=True):
    """A gateway process introduces itself."""

    pid: int
    release: str


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The whole table follows: parts, then :class:`Whole`."""

    version: int


class Part(msgspec.Struct, tag=True, frozen=True):
    """Some of a table. A route that has several public names comes under each."""

    routes: dict[str, Route] = {}
    principals: dict[str, Principal] = {}


class Whole(msgspec.Struct, tag=True, frozen=True):
    """The table has come to its end."""

    version: int


class Change(msgspec.Struct, tag=True, frozen=True):
    """What a newer table has otherwise."""

    version: int
    routes: dict[str, Route] = {}
    routes_removed: list[str] = []
    principals: dict[str, Principal] = {}
    principals_removed: list[str] = []
    #: Keys whose requests that are being answered shall end, too.
    closed: list[int] = []


class Metered(msgspec.Struct, tag=True, frozen=True):
    """Records of what requests took; the server answers with :class:`Kept` once they are safe."""

    number: int
    records: tuple[UsageRecord, ...]


class Kept(msgspec.Struct, tag=True, frozen=True):
    """The records of one message are in the database."""

    number: int


class Wake(msgspec.Struct, tag=True, frozen=True):
    """Somebody waits for a model that is asleep."""

    route: str


class Load(msgspec.Struct, tag=True, frozen=True):
    """What a gateway has to do: what has changed since the last one, and all there is in the first of a connection."""

    #: By route: requests that run, that wait for a turn or a start, and that have come in all.
    routes: dict[str, tuple[int, int, int]] = {}
    #: By instance: this gateway's own requests there. None has any more where 0 is told.
    instances: dict[int, int] = {}


FromServer = Begin | Part | Whole | Change | Kept
FromGateway = Hello | Metered | Wake | Load

encode = msgspec.msgpack.Encoder().encode
_from_server: Callable[[bytes], FromServer] = msgspec.msgpack.Decoder(FromServer).decode
_from_gateway: Callable[[bytes], FromGateway] = msgspec.msgpack.Decoder(FromGateway).decode


def from_server(data: bytes) -> FromServer:
    """Return what the server says. Raises ValueError for what is no message."""
    try:
        return _from_server(data)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def from_gateway(data: bytes) -> FromGateway:
    """Return what a gateway says. Raises ValueError for what is no message."""
    try:
        return _from_gateway(data)
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None


def framed(message: FromServer | FromGateway) -> bytes:
    """Return a message as it is sent."""
    data = encode(message)
    return len(data).to_bytes(_SIZE, "big") + data


async def read(stream: asyncio.StreamReader) -> bytes:
    """Return the next message, not decoded yet. Raises EOFError at the end, ValueError for one that is too long."""
    size = int.from_bytes(await stream.readexactly(_SIZE), "big")
    if size > LONGEST:
        raise ValueError(f"a message of {size} bytes is too long")
    return await stream.readexactly(size)


def parts_of(table: RoutingTable) -> Iterator[Part]:
    """Yield ``table`` in parts, as it is while they are taken: what changes meanwhile has to be sent again."""
    for routes in _slices(table.routes):
        yield Part(routes=routes)
    for principals in _slices(table.principals):
        yield Part(principals=principals)


def _slices(mapping: Mapping[str, T]) -> Iterator[dict[str, T]]:
    # The keys of this moment: the mapping may change between two parts.
    keys = iter(list(mapping))
    while some := list(islice(keys, _PART)):
        yield {key: mapping[key] for key in some if key in mapping}
