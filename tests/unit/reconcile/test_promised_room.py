"""Room that somebody has to leave for is kept for whom it is: nobody leaves twice for one."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.plugin import EstimateRequest, ResourceClaim
from gpustack.schemas import InstanceState
from support.reconcile import MemoryStore, Obedient, a_model, a_worker
from support.reconciling import reading, reconciling, until

S = InstanceState
#: Sizes in GiB of the workers, and of models with their replicas.
Fleet = tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]
FLEETS = st.tuples(
    st.lists(st.integers(4, 12), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(2, 12), st.integers(1, 2)), min_size=1, max_size=2),
)


class Sized(Obedient):
    """Claims as many GiB as the model's only parameter says."""

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        return ResourceClaim(ram=int(request.parameters[0]) * GIB)


def test_the_one_that_comes_in_a_victims_place_waits() -> None:
    """7 GiB are free, and 8 are needed: the 3 that come in the place of those that leave would fit before them."""
    store = run(([10], [(3, 1)], [(8, 1)]))
    assert drains(store) == {(2, 1): 1}
    assert settled_on(store) == {2: 1}


def test_what_is_promised_is_free_again_when_it_is_not_wanted_anymore() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        store.workers.put(a_worker(1, ram=10))
        async with reconciling(store, Sized()), reading(store, drain=3600):
            store.models.put(sized(1, 3, 1, priority=0))
            await until(lambda: settled_on(store) == {1: 1})
            store.models.put(sized(2, 8, 1, priority=5))
            await until(lambda: drains(store) == {(2, 1): 1})
            (third,) = await until(lambda: [e for e in of(store, 1) if e.id != 1 and _rests(e)])
            assert third.worker_id is None, "7 GiB are free, but promised"
            store.models.put(store.models.all[2].model_copy(update={"replicas": 0}))
            await until(lambda: store.instances.all[third.id].worker_id == 1)

    asyncio.run(scenario())


@settings(max_examples=25, deadline=None)
@given(fleet=FLEETS)
def test_nobody_leaves_twice_for_one_and_all_comes_to_rest(fleet: Fleet) -> None:
    workers, ordinary, urgent = fleet
    store = run(fleet)
    replicas = dict(enumerate((count for _, count in (*ordinary, *urgent)), 1))
    gone = drains(store)
    for (beneficiary, victim), count in gone.items():
        assert count <= replicas[beneficiary] * replicas[victim]
    assert created(store) == sum(replicas.values()) + gone.total()

    # Who waits does so for good reason.
    size = dict(enumerate((each for each, _ in (*ordinary, *urgent)), 1))
    important = range(len(ordinary) + 1, len(size) + 1)
    for each in store.instances.all.values():
        if each.worker_id is None:
            against = important if each.model_id in important else size
            for number, ram in enumerate(workers, 1):
                taken = [e.model_id for e in store.instances.all.values() if e.worker_id == number]
                assert ram - sum(size[e] for e in taken if e in against) < size[each.model_id]


def run(fleet: Fleet) -> MemoryStore:
    """Return the store after ordinary models had settled, then urgent ones came, and all had settled again."""
    return asyncio.run(_run(*fleet))


async def _run(workers: list[int], ordinary: list[Any], urgent: list[Any]) -> MemoryStore:
    store = MemoryStore()
    for number, ram in enumerate(workers, 1):
        store.workers.put(a_worker(number, ram=ram))
    async with reconciling(store, Sized()), reading(store, drain=0.04):
        for number, (ram, count) in enumerate(ordinary, 1):
            store.models.put(sized(number, ram, count, priority=0))
        await rest(store)
        for number, (ram, count) in enumerate(urgent, len(ordinary) + 1):
            store.models.put(sized(number, ram, count, priority=5))
        await rest(store)
    return store


def sized(number: int, ram: int, count: int, *, priority: int) -> Any:
    return a_model(
        number, name=f"m{number}", replicas=count, priority=priority, backend_parameters=[str(ram)]
    )


async def rest(store: MemoryStore) -> None:
    async with asyncio.timeout(10):
        before = -1
        while before != len(store.log) or not all(map(_rests, store.instances.all.values())):
            before = len(store.log)
            await asyncio.sleep(0.06)


def _rests(instance: Any) -> bool:
    waits = instance.state is S.PENDING and instance.state_message
    return instance.draining_since is None and bool(instance.state is S.SCHEDULED or waits)


def drains(store: MemoryStore) -> Counter[tuple[int, int]]:
    """Return how many had to leave, by the model for which and their own."""
    why = {
        each.id: each.data["state_message"]
        for each in store.log
        if each.topic == "model-instances" and each.data["draining_since"]
    }
    models = {each.id: each.data["model_id"] for each in store.log if each.topic == "model-instances"}
    names = {
        f"its room goes to model {each.name}, whose priority is higher": each.id
        for each in store.models.all.values()
    }
    return Counter((names[line], models[number]) for number, line in why.items())


def created(store: MemoryStore) -> int:
    return len({each.id for each in store.log if each.topic == "model-instances"})


def settled_on(store: MemoryStore) -> dict[int, int]:
    """Return the workers of models whose instance has one."""
    return {e.model_id: e.worker_id for e in store.instances.all.values() if e.worker_id is not None}


def of(store: MemoryStore, model: int) -> list[Any]:
    return [each for each in store.instances.all.values() if each.model_id == model]
