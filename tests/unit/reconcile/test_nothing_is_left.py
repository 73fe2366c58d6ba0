"""Models that come and go leave nothing behind in the reconciler, and nothing to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpustack.dataplane.table.wire import Load
from gpustack.schemas import Autoscaling, InstanceState, ModelFileState
from gpustack.server.loads import Loads
from gpustack.server.reconcile import reconciler as module
from gpustack.server.reconcile.scaling import FleetLoad
from support.growth import grown, held_by
from support.reconcile import MemoryStore, a_model, a_worker
from support.reconciling import reading, reconciling, until

S = InstanceState
#: What was deleted last, and times that may be out of date.
BOUNDED = ("._deleted", "._heap", "._queued")
QUICK = Autoscaling(outstanding=1, up_seconds=0.05, down_seconds=0.05, idle_seconds=0.05)


async def test_what_was_known_of_models_goes_with_them() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store) as reconciler, reading(store):
        loads = Loads(lambda route: {int(route): 1.0} if int(route) in store.models.all else {})
        loads.told, loads.woken = reconciler.loaded, reconciler.wake
        await _lives(store, loads, range(1, 6))
        reconciler.state.fleet.take(1000)
        files = reconciler.state.files
        await until(lambda: all(each.state is ModelFileState.READY for each in files.values()))
        before = held_by((reconciler, loads))
        await _lives(store, loads, range(6, 21))

        def left() -> dict[str, tuple[int, int]]:
            # Nobody else takes what is decided, which may come after the end of an instance.
            reconciler.state.fleet.take(1000)
            found = grown(before, held_by((reconciler, loads)))
            return {place: sizes for place, sizes in found.items() if not place.endswith(BOUNDED)}

        # What was written last is still on its way.
        await until(lambda: not left(), 30)
        assert len(reconciler.state.timers._heap) < 100


async def test_a_scaled_model_that_was_removed_is_not_looked_at_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []
    decide = module.decide

    def counted(state: Any, now: float) -> Any:
        looks.append(now)
        return decide(state, now)

    monkeypatch.setattr(module, "decide", counted)
    store = MemoryStore()
    store.models.put(a_model(min_replicas=1, max_replicas=3, autoscaling=Autoscaling(down_seconds=0.4)))
    async with reconciling(store) as reconciler:
        reconciler.loaded(FleetLoad(known=True))
        await until(lambda: reconciler.state.scaling.again)
        await store.models.delete(1)
        await until(lambda: not reconciler.state.models)
        await asyncio.sleep(0.5)
        looks.clear()
        await asyncio.sleep(0.2)

    assert len(looks) < 5


def _scaled(number: int, **more: Any) -> Any:
    return a_model(number, autoscaling=QUICK, **{"min_replicas": 1, "max_replicas": 3, **more})


async def _lives(store: MemoryStore, loads: Loads, numbers: range) -> None:
    """Have models deployed, asked, scaled and removed, one after the other."""
    for number in numbers:
        store.models.put(_scaled(number))
        await until(lambda: [each.state for each in store.instances.all.values()] == [S.SCHEDULED], 30)
        (instance,) = store.instances.all
        await store.instances.change(instance, state=S.RUNNING)
        loads.take("gateway", Load({str(number): (1, 2, 3)}, {instance: 1}))
        loads.wake(str(number))
        await until(lambda: len(store.instances.all) > 1, 30)
        for each in list(store.instances.all):
            await store.instances.delete(each)
        await store.models.delete(number)
        loads.take("gateway", Load({str(number): (0, 0, 3)}, {instance: 0}))
        await until(lambda: not store.instances.all, 30)
