"""Signs of life: the later of two counts, and each with the time at which it came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from gpustack.db import Store
from gpustack.kit.errors import Unavailable
from gpustack.schemas import Heartbeat
from gpustack.server.heartbeats import Heartbeats


class Writes:
    """A store that may be away, and keeps what was written."""

    def __init__(self) -> None:
        self.away = False
        self.refuses = False
        self.workers = self
        self.beats: dict[int, Heartbeat] = {}
        self.arrivals: dict[int, datetime] = {}

    async def heartbeat_many(
        self, beats: Mapping[int, Heartbeat], arrivals: Mapping[int, datetime]
    ) -> set[int]:
        if self.refuses:
            raise Unavailable("not now", retry_after=1.0)
        self.beats, self.arrivals = dict(beats), dict(arrivals)
        return set()


async def collected(*beats: Heartbeat) -> Heartbeat:
    store = Writes()
    heartbeats = Heartbeats(cast("Store", store))
    for beat in beats:
        heartbeats.add(1, beat)
    await heartbeats.flush()
    return store.beats[1]


async def test_that_nothing_is_installed_any_more_is_not_lost() -> None:
    some: dict[str, Any] = {"llama.cpp": ["1"]}
    later = await collected(Heartbeat(installed_versions=some), Heartbeat(installed_versions={}))
    assert later.installed_versions == {}
    later = await collected(Heartbeat(installed_versions=some), Heartbeat())
    assert later.installed_versions == some


async def test_what_an_outage_held_back_is_written_with_its_own_time() -> None:
    store = Writes()
    heartbeats = Heartbeats(cast("Store", store))
    store.away = True
    heartbeats.add(1, Heartbeat())
    await heartbeats.flush()
    store.away, store.refuses = False, True
    await heartbeats.flush()
    held_back = datetime.now(UTC)
    await asyncio.sleep(0.01)
    heartbeats.add(2, Heartbeat())
    store.refuses = False
    await heartbeats.flush()
    assert store.arrivals[1] < held_back < store.arrivals[2]
    heartbeats.add(1, Heartbeat())
    await heartbeats.flush()
    assert store.arrivals.keys() == {1}
    assert store.arrivals[1] > held_back
