"""A watch goes on through everything that happens to a connection, and its picture stays true."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from gpustack.client import Client
from gpustack.client.watch import lines
from gpustack.kit.errors import Forbidden, Unavailable
from gpustack.schemas import EventType
from support.fake_api import CutOff, FakeApi, Reply, event, fake_api

CREATED, UPDATED, DELETED, HEARTBEAT = 1, 2, 3, 5
PATH = "/v2/model-instances"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with fake_api() as served:
        yield served


async def seen(api: FakeApi, count: int, **options: Any) -> list[tuple[str, int]]:
    """Return kind and id of the first ``count`` events of a watch."""
    found: list[tuple[str, int]] = []
    async with (
        Client(api.url, "key") as client,
        aclosing(client.watch(PATH, {"worker_id": 3}, **options)) as events,
    ):
        async for each in events:
            found.append((each.type.name, each.id))
            if len(found) == count:
                break
    return found


async def _chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_lines_are_found_however_the_stream_was_cut() -> None:
    text = '{"a": "\u2028 is no end of line"}\r\n\n{"b": 1}\n{"cut off'.encode()
    whole = ['{"a": "\u2028 is no end of line"}'.encode(), b"", b'{"b": 1}']

    for size in (1, 2, 3, 7, 1000):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert [line async for line in lines(_chunks(*pieces))] == whole


async def test_what_exists_comes_first_and_then_changes(api: FakeApi) -> None:
    stream = [event(CREATED, 1, number=9), b"\n", event(HEARTBEAT, 0, number=9), event(UPDATED, 1, number=10)]
    api.on("GET", PATH, Reply(pieces=itertools.chain(stream, api.hold())))

    assert await seen(api, 3) == [("CREATED", 1), ("HEARTBEAT", 0), ("UPDATED", 1)]
    (asked,) = api.asked
    assert asked.query == {"worker_id": "3", "watch": "true"}
    assert asked.headers["authorization"] == "Bearer key"


def _cut(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise CutOff


async def test_a_broken_connection_goes_on_where_it_was(api: FakeApi) -> None:
    first = _cut(event(CREATED, 1, number=9), event(HEARTBEAT, 0, number=9), event(UPDATED, 1, number=12))
    api.on(
        "GET",
        PATH,
        Reply(pieces=first),
        Reply(pieces=itertools.chain([event(DELETED, 1, number=13)], api.hold())),
    )

    assert await seen(api, 4) == [("CREATED", 1), ("HEARTBEAT", 0), ("UPDATED", 1), ("DELETED", 1)]
    assert [each.query.get("since") for each in api.asked] == [None, "12"]


async def test_a_replay_cut_in_the_middle_is_asked_for_again(api: FakeApi) -> None:
    # Its lines carry the number of its end: going on from there would lose instance 2.
    second = [event(CREATED, 1, number=9), event(CREATED, 2, number=9), event(HEARTBEAT, 0, number=9)]
    api.on(
        "GET",
        PATH,
        Reply(pieces=_cut(event(CREATED, 1, number=9))),
        Reply(pieces=itertools.chain(second, api.hold())),
    )

    assert await seen(api, 4) == [("CREATED", 1), ("UPDATED", 1), ("CREATED", 2), ("HEARTBEAT", 0)]
    assert [each.query.get("since") for each in api.asked] == [None, None]


async def test_events_no_longer_kept_lead_to_a_replay_that_tells_what_has_gone(api: FakeApi) -> None:
    first = _cut(event(CREATED, 1, number=5), event(CREATED, 2, number=5), event(HEARTBEAT, 0, number=5))
    third = [event(CREATED, 2, number=90), event(CREATED, 3, number=90), event(HEARTBEAT, 0, number=90)]
    api.on(
        "GET",
        PATH,
        Reply(pieces=first),
        Reply(410, {"code": 410, "reason": "Gone", "message": "too long ago"}),
        Reply(pieces=itertools.chain(third, api.hold())),
    )

    assert (await seen(api, 7))[3:] == [("UPDATED", 2), ("CREATED", 3), ("DELETED", 1), ("HEARTBEAT", 0)]
    assert [each.query.get("since") for each in api.asked] == [None, "5", None]


async def test_a_silent_connection_counts_as_dead(api: FakeApi) -> None:
    first = itertools.chain([event(HEARTBEAT, 0, number=4)], api.hold())
    second = itertools.chain([event(CREATED, 7, number=6)], api.hold())
    api.on("GET", PATH, Reply(pieces=first), Reply(pieces=second))

    assert await seen(api, 2, silence=0.3) == [("HEARTBEAT", 0), ("CREATED", 7)]


async def test_blank_lines_keep_a_quiet_connection_alive(api: FakeApi) -> None:
    def quiet() -> Iterator[bytes]:
        yield event(HEARTBEAT, 0, number=4)
        for _ in range(5):
            api.ending.wait(0.1)
            yield b"\n"
        yield event(CREATED, 7, number=6)
        yield from api.hold()

    api.on("GET", PATH, Reply(pieces=quiet()))

    assert await seen(api, 2, silence=0.3) == [("HEARTBEAT", 0), ("CREATED", 7)]
    assert len(api.asked) == 1


async def test_the_servers_last_word_ends_a_connection_and_is_no_event(api: FakeApi) -> None:
    farewell = event(4, 0, {"message": "this watch was too slow"})
    first = [event(HEARTBEAT, 0, number=4), farewell]
    second = itertools.chain([event(CREATED, 7, number=6)], api.hold())
    api.on("GET", PATH, Reply(pieces=first), Reply(pieces=second))

    assert await seen(api, 2) == [("HEARTBEAT", 0), ("CREATED", 7)]


async def test_what_waiting_cannot_help_is_raised_at_once(api: FakeApi) -> None:
    api.on(
        "GET",
        PATH,
        Reply(403, {"code": 403, "reason": "Forbidden", "message": "this needs an administrator"}),
    )

    with pytest.raises(Forbidden, match="this needs an administrator"):
        await seen(api, 1)
    assert len(api.asked) == 1


async def test_patience_ends(api: FakeApi) -> None:
    api.on("GET", PATH, Reply(503, {"code": 503, "reason": "x", "message": "no database"}))

    with pytest.raises(Unavailable, match=r"no database \(for \d+ s\)"):
        await seen(api, 1, patience=0.5)
    assert len(api.asked) >= 2


async def test_a_line_that_is_no_event_breaks_the_connection_only(api: FakeApi) -> None:
    second = itertools.chain([event(HEARTBEAT, 0, number=4)], api.hold())
    api.on("GET", PATH, Reply(pieces=[b"<html>\n"]), Reply(pieces=second))

    assert await seen(api, 1) == [(EventType.HEARTBEAT.name, 0)]
