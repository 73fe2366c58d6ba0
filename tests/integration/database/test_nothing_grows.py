"""What connections keep prepared, and what transactions leave, does not grow with what is asked."""

from __future__ import annotations

import gc
import weakref
from datetime import UTC, datetime

from gpustack.db import Store
from gpustack.db.repositories.base import sql
from gpustack.plugin.routing import UsageRecord
from gpustack.schemas import Heartbeat, WorkerRegistration, WorkerStatus


async def test_usage_in_batches_of_any_size_takes_few_statements(migrated_url: str) -> None:
    async with await Store.open(migrated_url, pool=(1, 1)) as store:
        for size in range(1, 36):
            await store.usage.keep([_a_record(f"{size}-{number}") for number in range(size)])

        assert (await store.usage.totals()).requests == sum(range(1, 36))
        kept = await _prepared(store, 'INSERT INTO "usage_records"')
        assert kept <= {_shape(1), _shape(2), _shape(4), _shape(8), _shape(16)}


async def test_heartbeats_and_keys_of_any_number_take_few_statements(migrated_url: str) -> None:
    async with await Store.open(migrated_url, pool=(1, 1)) as store:
        workers = [await _a_worker(store, number) for number in range(40)]
        for size in range(1, 41):
            beats = {worker: Heartbeat(status=WorkerStatus()) for worker in workers[:size]}
            await store.workers.heartbeat_many(beats, dict.fromkeys(beats, datetime.now(UTC)))
            await store.api_keys.principals(keys=range(1, size + 1))

        assert len(await _prepared(store, "UPDATE workers SET heartbeat_time")) <= 6
        assert len(await _prepared(store, "FROM api_keys")) <= 7


async def test_what_is_long_is_not_kept(migrated_url: str) -> None:
    async with await Store.open(migrated_url, pool=(1, 1)) as store:
        for size in range(400, 410):
            await store.api_keys.principals(keys=range(1, size + 1))

        assert await _prepared(store, "FROM api_keys") == set()


def _a_record(number: str) -> UsageRecord:
    return UsageRecord(id=number, at=1.5, model="m", prompt_tokens=7)


def _shape(rows: int) -> int:
    """Return how many values so many rows of usage have."""
    return 18 * rows


async def _a_worker(store: Store, number: int) -> int:
    cluster = await store.clusters.default()
    wanted = WorkerRegistration(
        name=f"w-{number}",
        ip="10.0.0.1",
        door_token="d" * 16,
        worker_uuid=f"uuid-of-{number:03}",
        version="1",
    )
    return (await store.workers.register(wanted, f"token-{number}", cluster.id)).id


async def _prepared(store: Store, part: str) -> set[int]:
    """Return the numbers of values of the statements with ``part`` that the only connection has prepared."""
    query = sql(
        "SELECT cardinality(parameter_types) AS size FROM pg_prepared_statements "
        "WHERE position({} IN statement) > 0 AND statement NOT LIKE '%pg_prepared%'",
        part,
    )
    return {int(row["size"]) for row in await store.usage._session.fetch(query)}


async def test_a_transaction_is_gone_with_its_end_and_without_the_collector(store: Store) -> None:
    gc.collect()
    gc.disable()
    try:
        async with store.transaction() as tx:
            left = [weakref.ref(tx), weakref.ref(tx.models)]
        del tx
        assert [each() for each in left] == [None, None]
    finally:
        gc.enable()
