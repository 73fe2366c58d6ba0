"""Rows of backends: what people describe is placed on workers that can serve it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpustack.kit.backoff import Backoff
from gpustack.plugin import Host, NoSettings
from gpustack.schemas import InferenceBackendRow, InstanceState, ModelFileState
from gpustack.server.reconcile import Reconciler
from gpustack_backends import Custom
from support.reconcile import FACTS, MemoryStore, Obedient, a_model, a_worker
from support.reconciling import FAST, reading, until

S = InstanceState
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CAN = {"backends": ["obedient", "custom"]}


def a_row(number: int = 1, name: str = "mine", **fields: Any) -> InferenceBackendRow:
    described = {"version_configs": {"v1": {"run_command": "serve {{port}}"}}, **fields}
    return InferenceBackendRow.model_validate(
        {"id": number, "backend_name": name, "created_at": NOW, "updated_at": NOW, **described}
    )


@asynccontextmanager
async def reconciling(store: MemoryStore) -> AsyncIterator[Reconciler]:
    host = Host(log=logging.getLogger(), data_dir=Path("/d"), bin_dir=Path("/b"))
    backends = {
        "obedient": (Obedient(), "obedient-plugin"),
        "custom": (Custom(NoSettings(), host), "gpustack-backends"),
    }
    async with Reconciler(
        store,
        store,
        backends,
        limits=FAST,
        backoff=Backoff(first=0.02, limit=0.05),  # type: ignore[arg-type]
    ) as reconciler:
        yield reconciler


async def test_a_model_waits_for_its_backend_to_be_described() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(catalogue=CAN))
    async with reconciling(store), reading(store):
        store.models.put(a_model(backend="mine"))
        failed = await until(lambda: [e for e in store.instances.all.values() if e.state is S.ERROR])
        assert "worker-1: has not the backend mine installed" in failed[0].state_message

        store.inference_backends.put(a_row())
        [placed] = await until(lambda: [e for e in store.instances.all.values() if e.state is S.SCHEDULED])

    assert (placed.backend, placed.backend_version) == ("mine", "v1")
    assert placed.computed_resource_claim.ram >= 1 << 29


async def test_only_a_worker_with_the_custom_backend_gets_it() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(1, catalogue={"backends": ["obedient"]}))
    store.inference_backends.put(a_row())
    async with reconciling(store), reading(store):
        store.models.put(a_model(backend="mine"))
        failed = await until(lambda: [e for e in store.instances.all.values() if e.state is S.ERROR])
        assert "mine" in failed[0].state_message

        store.workers.put(a_worker(2, catalogue=CAN))
        [placed] = await until(lambda: [e for e in store.instances.all.values() if e.state is S.SCHEDULED])

    assert placed.worker_id == 2


async def test_files_that_we_cannot_read_are_left_to_it() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(catalogue=CAN))
    store.inference_backends.put(a_row())
    unreadable = {
        "state": ModelFileState.ERROR,
        "state_message": "it is not a model file",
        "facts": {**FACTS.model_dump(), "format": "unknown", "weight_bytes": 7},
    }
    async with reconciling(store), reading(store, unreadable):
        store.models.put(a_model(1, backend="mine"))
        store.models.put(a_model(2, name="other", local_path="/other.bin"))
        placed = await until(lambda: [e for e in store.instances.all.values() if e.state is S.SCHEDULED])
        failed = await until(lambda: [e for e in store.instances.all.values() if e.state is S.ERROR])

    assert [each.model_name for each in placed] == [a_model().name]
    assert [each.model_name for each in failed] == ["other"]
    assert "it is not a model file" in failed[0].state_message


async def test_a_version_that_a_row_adds_to_a_plugins_backend_is_not_installed() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(catalogue=CAN))
    store.inference_backends.put(
        a_row(name="obedient", version_configs={"own": {"run_command": "mine {{port}}"}})
    )
    async with reconciling(store) as reconciler, reading(store):
        store.models.put(a_model(backend="obedient", backend_version="own"))
        [placed] = await until(lambda: [e for e in store.instances.all.values() if e.state is S.SCHEDULED])
        [question] = reconciler.state.answers

    assert (placed.backend, placed.backend_version) == ("obedient", "own")
    assert (question.asked, question.installs) == ("obedient", False)


async def test_a_row_that_goes_takes_its_name_from_the_workers() -> None:
    store = MemoryStore()
    store.workers.put(a_worker(catalogue=CAN))
    store.inference_backends.put(a_row())
    async with reconciling(store) as reconciler:

        def names() -> set[str]:
            return {name for each in reconciler.state.fleet.workers() for name in each.backends}

        await until(lambda: "mine" in names())
        await store.inference_backends.delete(1)
        await until(lambda: "mine" not in names())
