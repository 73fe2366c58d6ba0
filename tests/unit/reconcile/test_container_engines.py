"""An engine that runs in a container goes where there is a container engine, and the reason is told where there is none."""

from __future__ import annotations

from typing import Any

from gpustack.plugin import ContainerImage
from gpustack.schemas import ContainerEngineStatus, InstanceState, MemoryStatus, WorkerStatus
from support.reconcile import GIB, MemoryStore, Obedient, a_model, a_worker
from support.reconciling import reading, reconciling, until

S = InstanceState
NONE = "no container engine is on this worker: install Docker or Podman"


class InContainers(Obedient):
    """The same, as an image."""

    def artifact(self, version: str, platform: Any) -> Any:
        return ContainerImage(image="acme/engine", version=version)


def with_engine(number: int, **engine: str) -> Any:
    status = WorkerStatus(
        memory=MemoryStatus(total=24 * GIB), container_engine=ContainerEngineStatus(**engine)
    )
    return a_worker(number, status=status)


async def test_it_is_placed_where_there_is_one() -> None:
    store = MemoryStore()
    store.workers.put(with_engine(1, reason=NONE))
    store.workers.put(with_engine(2, name="Docker 28.2.2"))
    async with reconciling(store, InContainers()), reading(store):
        store.models.put(a_model())
        await until(lambda: [each for each in store.instances.all.values() if each.state is S.SCHEDULED])

    assert [each.worker_id for each in store.instances.all.values()] == [2]


async def test_the_reason_is_told_and_a_new_engine_is_another_chance() -> None:
    store = MemoryStore()
    store.workers.put(with_engine(1, reason=NONE))
    async with reconciling(store, InContainers()), reading(store):
        store.models.put(a_model())
        await until(lambda: [each for each in store.instances.all.values() if NONE in each.state_message])
        store.workers.put(with_engine(1, name="Podman 5.0"))
        await until(lambda: [each for each in store.instances.all.values() if each.state is S.SCHEDULED])
