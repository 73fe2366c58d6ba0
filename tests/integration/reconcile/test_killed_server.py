"""A server that is killed between deciding and writing, at every single write: the next one finishes what it began."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from gpustack.db import Store
from gpustack.kit.text import GIB
from gpustack.schemas import InstanceState

from .test_fleet import FakeWorker, all_in, deploy, reconciling, rows, until

S = InstanceState
#: More than it takes: the last of them finds that all is done.
_MOST = 40


class Killed:
    """Has the store's writes come to nothing from the ``number``-th on, as if their process were gone.

    With ``at_the_end`` that one is still sent, but not committed.
    """

    def __init__(self, store: Store, number: int, *, at_the_end: bool) -> None:
        self._pool: Any = store._pool
        self._begin = self._pool.transaction
        self._left = number
        self._at_the_end = at_the_end
        self.happened = asyncio.Event()
        self._pool.transaction = self._transaction

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        self._left -= 1
        if self._left > 0:
            async with self._begin() as connection:
                yield connection
            return
        if self._left == 0 and self._at_the_end:
            async with self._begin() as connection:
                yield connection
                await self._gone()
        await self._gone()

    async def _gone(self) -> None:
        self.happened.set()
        await asyncio.Event().wait()


async def _whole(store: Store) -> bool:
    return await all_in(store, S.RUNNING, S.RUNNING, S.RUNNING)()


async def _run_until_killed(url: str, number: int, *, at_the_end: bool) -> bool:
    """Reconcile until the ``number``-th write; False when it came to rest before."""
    async with await Store.open(url) as store, store.feed() as feed:
        killed = Killed(store, number, at_the_end=at_the_end)
        async with reconciling(store, feed):
            while not killed.happened.is_set():
                if await _whole(store):
                    return False
                with suppress(TimeoutError):
                    await asyncio.wait_for(killed.happened.wait(), 0.05)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("at_the_end", [False, True], ids=["before the write", "before the commit"])
async def test_whenever_it_dies_the_next_one_ends_up_where_it_would_have(
    store: Store, migrated_url: str, at_the_end: bool
) -> None:
    number, died = 0, True
    while died:
        number += 1
        assert number < _MOST
        async with store.feed() as feed, FakeWorker(store, feed, "box", ram=13).working():
            two = await deploy(store, "two", replicas=2)
            one = await deploy(store, "one")
            died = await _run_until_killed(migrated_url, number, at_the_end=at_the_end)
            # There is room for three: a claim that was counted twice would keep one of them out.
            async with reconciling(store, feed):
                await until(lambda: _whole(store))
            found = await rows(store)
            assert Counter(each.model_id for each in found) == {two.id: 2, one.id: 1}
            assert sum(each.computed_resource_claim.ram for each in found) <= 13 * GIB
            assert {each.restart_count for each in found} == {0}
            async with reconciling(store, feed):
                for model in (two, one):
                    await store.models.delete(model.id)
                await until(all_in(store))
    assert number > 3, "it was killed at several writes"
