"""Messages between server and gateways: told apart in a stream, small, and no bytes make either side fail."""

from __future__ import annotations

import asyncio

import pytest

from gpustack.dataplane.table import wire
from gpustack.dataplane.table.wire import Begin, Change, Hello, Kept, Metered, Part, Wake, Whole
from gpustack.plugin.routing import Limits, Principal, Route, RoutingTable, Target, Timeouts, UsageRecord

ROUTE = Route(
    name="tiny",
    created=5,
    targets=(Target(instance_id=1, host="::1", port=2, credential="c", slots=4, ready_at=1.5),),
    aliases=("gpt-4",),
    timeouts=Timeouts(first_byte=0.5),
    queue_tokens=9,
)
KEY = Principal(
    user_id=None, username="é", allowed=frozenset({"tiny"}), expires_at=1.5, limits=Limits(concurrency=3)
)
RECORD = UsageRecord(id="a-1", at=1.5, model="m", time_to_first_token=0.1, estimated=True)


def a_stream(data: bytes) -> asyncio.StreamReader:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    return stream


async def test_what_is_said_arrives_as_it_was() -> None:
    told = [
        Begin(1),
        Part({"tiny": ROUTE, "gpt-4": ROUTE}, {"d": KEY}),
        Change(2, {"x": ROUTE}, ["y"], {"e": KEY}, ["f"]),
        Whole(2),
        Kept(3),
    ]
    stream = a_stream(b"".join(map(wire.framed, told)))
    assert [wire.from_server(await wire.read(stream)) for _ in told] == told
    said = [Hello(7, "1.0"), Metered(1, (RECORD,)), Wake("tiny")]
    stream = a_stream(b"".join(map(wire.framed, said)))
    assert [wire.from_gateway(await wire.read(stream)) for _ in said] == said


async def test_the_end_is_an_end_wherever_it_comes() -> None:
    data = wire.framed(Whole(1))
    for cut in range(len(data)):
        with pytest.raises(EOFError):
            await wire.read(a_stream(data[:cut]))


async def test_a_message_that_is_too_long_is_not_waited_for() -> None:
    with pytest.raises(ValueError, match="too long"):
        await wire.read(a_stream((wire.LONGEST + 1).to_bytes(4, "big")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xc0",
        wire.encode(Hello(1, "x"))[:-1],
        b"\x82\xa4type\xa4Kept\xa6number\xa1x",
        b"\x81\xa4type\xa4Nope",
        b"\x83\xa4type\xa4Kept\xa6number\x01\xa1x" + b"\x91" * 5000 + b"\xc0",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_what_is_no_message_is_a_value_error_on_both_sides(data: bytes) -> None:
    for decode in (wire.from_server, wire.from_gateway):
        with pytest.raises(ValueError):  # noqa: PT011  (what it says comes from elsewhere)
            decode(data)


def test_a_table_is_told_in_small_parts_that_hold_all_of_it() -> None:
    table = RoutingTable(
        routes={f"m{number}": ROUTE for number in range(1200)},
        principals={f"k{number}": KEY for number in range(2600)},
    )
    parts = list(wire.parts_of(table))
    assert len(parts) == 3 + 6
    assert all(len(part.routes) + len(part.principals) <= 500 for part in parts)
    assert {name for part in parts for name in part.routes} == set(table.routes)
    assert {name for part in parts for name in part.principals} == set(table.principals)


def test_what_is_removed_while_a_table_is_told_is_not_told_afterwards() -> None:
    principals = {f"k{number}": KEY for number in range(1500)}
    told: set[str] = set()
    for number, part in enumerate(wire.parts_of(RoutingTable(principals=principals))):
        told |= set(part.principals)
        del principals[f"k{number * 500 + 700}"]
        principals[f"new{number}"] = KEY
        if number == 1:
            break
    assert "k700" not in told
    assert "k0" in told
