"""What requests took is kept once, and found by the id that a client was told."""

from __future__ import annotations

from gpustack.db import Store
from gpustack.db.repositories.usage import Totals
from gpustack.plugin.routing import UsageRecord


def a_record(number: str, request_id: str) -> UsageRecord:
    return UsageRecord(id=number, at=1.5, model="m", prompt_tokens=7, request_id=request_id)


async def test_a_request_is_found_by_its_id_and_counted_once(store: Store) -> None:
    records = [a_record("w-1", "mine:7"), a_record("w-2", "another")]
    await store.usage.keep(records)
    await store.usage.keep(records)

    found = await store.usage.totals(request_id="mine:7")
    assert found == Totals(requests=1, prompt_tokens=7, cached_tokens=0, completion_tokens=0)


async def test_an_id_that_is_too_long_is_cut_and_what_was_taken_kept(store: Store) -> None:
    await store.usage.keep([a_record("w-1", "x" * 300)])

    assert (await store.usage.totals(request_id="x" * 128)).prompt_tokens == 7
