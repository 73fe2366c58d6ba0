"""A decision that raises costs its own instance, and nobody else's."""

from __future__ import annotations

import logging

import pytest

from gpustack.plugin import ResourceClaim
from gpustack.scheduling.fleet import Fleet
from gpustack.schemas import InstanceState
from support.reconcile import MemoryStore, Obedient, a_model, a_worker
from support.reconciling import reading, reconciling, until

S = InstanceState


async def test_the_others_are_placed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Fleet.place

    def breaks_for_boom(self: Fleet, request: object) -> object:
        if request.model_name == "boom":  # type: ignore[attr-defined]
            raise OverflowError("too large to convert")
        return place(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Fleet, "place", breaks_for_boom)
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store), reading(store):
        store.models.put(a_model(2, name="boom", priority=1))
        boom = await until(lambda: [e for e in store.instances.all.values() if e.state is S.ERROR])
        store.models.put(a_model(replicas=2))
        await until(lambda: sum(e.state is S.SCHEDULED for e in store.instances.all.values()) == 2)
        # Another worker is another chance, and says the same.
        store.workers.put(a_worker(2))
        await until(lambda: [e for e in store.instances.all.values() if e.state is S.ERROR])

    message, *_ = boom[0].state_message.splitlines()
    assert (
        message == "GPUStack failed to decide where model boom can run: OverflowError: too large to convert"
    )
    told = [each for each in caplog.records if each.exc_info and each.levelno >= logging.WARNING]
    assert told
    assert "boom" in told[0].getMessage()
    assert len(told) <= 2, "once for each attempt"


@pytest.mark.parametrize("claim", [ResourceClaim(ram=10**29), ResourceClaim(ram=10**400)])
async def test_what_no_machine_has_is_refused(claim: ResourceClaim) -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    async with reconciling(store, Obedient(claim)), reading(store):
        store.models.put(a_model())
        await until(lambda: [each for each in store.instances.all.values() if each.state is S.ERROR])

    (instance,) = store.instances.all.values()
    assert "takes more than 1024.0 TiB of memory, which no machine has" in instance.state_message
