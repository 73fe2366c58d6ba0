"""Models in the reconciler whose replicas follow what gateways say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from gpustack.dataplane.table.wire import Load
from gpustack.kit.backoff import Backoff
from gpustack.schemas import Autoscaling, Heartbeat, InstanceState
from gpustack.server.loads import Loads, least_to_tell
from gpustack.server.reconcile import Reconciler
from gpustack.server.reconcile.actions import Drain, Scale
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.scaling import FleetLoad
from gpustack.settings.gateway import ChosenGateway, GatewayProcess
from support.reconcile import MemoryStore, Obedient, a_model, a_state, a_worker, an_instance, running

QUICK = Autoscaling(outstanding=2, up_seconds=0.1, down_seconds=0.3, idle_seconds=0.3)
S = InstanceState


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def reconciling(store: MemoryStore) -> AsyncIterator[Reconciler]:
    backends: dict[str, Any] = {"obedient": (Obedient(), "obedient-plugin")}
    backoff = Backoff(first=0.02, limit=0.05)
    async with Reconciler(store, store, backends, backoff=backoff) as reconciler:  # type: ignore[arg-type]
        await until(lambda: reconciler.state.models)
        yield reconciler


def replicas(store: MemoryStore) -> int:
    return int(store.models.all[1].replicas)


def a_scaled(least: int, most: int, **more: Any) -> Any:
    return a_model(min_replicas=least, max_replicas=most, autoscaling=QUICK, **more)


async def test_a_wake_up_starts_a_model_that_sleeps_and_being_idle_ends_it_again() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    store.models.put(a_scaled(0, 3, replicas=0))
    async with reconciling(store) as reconciler:
        reconciler.loaded(FleetLoad(known=True))
        reconciler.wake([1])
        await until(lambda: replicas(store) == 1 and len(store.instances.all) == 1)
        # As long as it starts, nobody could have asked for it.
        await asyncio.sleep(0.5)
        assert replicas(store) == 1
        number = next(iter(store.instances.all))
        await store.instances.change(number, state=S.RUNNING, worker_id=1)
        await until(lambda: replicas(store) == 0)


async def test_a_wake_up_while_the_database_is_away_is_not_lost() -> None:
    store = MemoryStore()
    store.models.put(a_scaled(0, 1, replicas=0))
    async with reconciling(store) as reconciler:
        store.down = True
        reconciler.wake([1])
        await asyncio.sleep(0.1)
        assert replicas(store) == 0
        store.down = False
        await until(lambda: replicas(store) == 1)


async def test_a_wake_up_of_what_runs_or_is_fixed_changes_nothing() -> None:
    store = MemoryStore()
    store.models.put(a_scaled(0, 3, replicas=2))
    store.models.put(a_model(2, replicas=0))
    async with reconciling(store) as reconciler:
        reconciler.wake([1, 2, 99])
        await asyncio.sleep(0.2)
        assert (replicas(store), store.models.all[2].replicas) == (2, 0)


async def test_more_come_with_the_load_and_fewer_stay_after_it_without_a_word_from_anybody() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    store.models.put(a_scaled(1, 4))
    async with reconciling(store) as reconciler:
        reconciler.loaded(FleetLoad(waiting={1: 6}, known=True))
        await until(lambda: replicas(store) == 3 and len(store.instances.all) == 3)
        reconciler.loaded(FleetLoad(known=True))
        await until(lambda: replicas(store) == 1)


async def test_without_any_word_from_gateways_nothing_is_taken_for_idle() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    store.models.put(a_scaled(0, 4, replicas=3))
    for number in (1, 2, 3):
        store.instances.put(running(number))
    async with reconciling(store) as reconciler:
        reconciler.loaded(FleetLoad(known=False))
        await asyncio.sleep(0.8)
        assert replicas(store) == 3
        reconciler.loaded(FleetLoad(known=True))
        await until(lambda: replicas(store) == 0)


def test_requests_count_where_they_are_and_not_at_what_drains() -> None:
    state = a_state(
        models=[a_scaled(1, 9)],
        instances=[running(1), running(2, draining_since=a_model().created_at)],
    )
    load = FleetLoad(running={1: 5, 2: 50, 77: 50}, waiting={1: 2, 5: 9}, known=True)
    state.scaling.take(state, load, 0.0)
    state.scaling.take(state, load, 0.2)
    assert decide(state, 0.2) == [Scale(1, 1, 4, "7 outstanding requests, 2 wanted for each instance")]


def test_the_caches_that_workers_tell_of_count_too() -> None:
    state = a_state(
        workers=[a_worker()], models=[a_scaled(1, 9, replicas=2)], instances=[running(1), running(2)]
    )
    state.scaling.take(state, FleetLoad(running={1: 1}, known=True), 0.0)
    assert not any(isinstance(each, Scale) for each in decide(state, 0.2))
    state.heard(1, Heartbeat(kv_caches={1: 0.9, 2: 0.95}), 0.25)
    state.scaling.look_at_caches(state, 0.25)
    assert decide(state, 0.36)[0] == Scale(
        1, 2, 3, "1 outstanding requests, 2 wanted for each instance; 1.9 KV caches full, 80% wanted of each"
    )


async def test_full_caches_alone_make_more_instances() -> None:
    store = MemoryStore()
    store.workers.put(a_worker())
    store.models.put(a_scaled(1, 4))
    store.instances.put(running(1))
    async with reconciling(store) as reconciler:
        reconciler.loaded(FleetLoad(running={1: 1}, known=True))
        await asyncio.sleep(0.3)
        assert replicas(store) == 1
        reconciler.heard({1: Heartbeat(kv_caches={1: 0.95})})
        await until(lambda: replicas(store) == 2)


def test_a_worker_tells_of_its_own_instances_and_what_it_tells_no_longer_is_forgotten() -> None:
    state = a_state(
        workers=[a_worker(1), a_worker(2)],
        models=[a_scaled(1, 9, replicas=2)],
        instances=[running(1), running(2)],
    )
    # As many as two are enough for, and not one.
    state.scaling.take(state, FleetLoad(running={1: 3}, known=True), 0.0)

    def scaled_after(worker_id: int, caches: dict[int, float]) -> bool:
        state.heard(worker_id, Heartbeat(kv_caches=caches), 0.25)
        state.scaling.look_at_caches(state, 0.25)
        found = any(isinstance(each, Scale) for each in decide(state, 0.4))
        state.heard(worker_id, Heartbeat(kv_caches={}), 0.41)
        state.scaling.look_at_caches(state, 0.41)
        return found

    assert not scaled_after(2, {1: 1.0, 2: 1.0})
    assert not scaled_after(1, {1: 1.0, 99: 1.0})
    assert scaled_after(1, {1: 1.0, 2: 1.0})
    assert not any(isinstance(each, Scale) and each.replicas > 2 for each in decide(state, 0.6))


@pytest.mark.parametrize("used", [-0.1, 1.1, float("nan"), float("inf"), "full"])
def test_a_cache_is_full_at_most(used: Any) -> None:
    with pytest.raises(ValidationError):
        Heartbeat(kv_caches={1: used})


def test_of_several_that_run_the_one_with_the_fewest_requests_ends() -> None:
    state = a_state(models=[a_model(replicas=2)], instances=[running(1), running(2), running(3)])
    state.scaling.take(state, FleetLoad(running={1: 4, 3: 9}, known=True), 0.0)
    drained = [each.instance_id for each in decide(state, 0.0) if isinstance(each, Drain)]
    assert drained == [2]
    state.scaling.take(state, FleetLoad(running={1: 1, 2: 5, 3: 9}, known=True), 0.0)
    drained = [each.instance_id for each in decide(state, 0.0) if isinstance(each, Drain)]
    assert drained == [1]


def test_a_model_that_fails_to_start_may_go_to_sleep() -> None:
    failed = an_instance(1, S.ERROR, worker_id=1)
    state = a_state(models=[a_scaled(0, 1)], instances=[failed])
    state.scaling.take(state, FleetLoad(known=True), 0.0)
    assert decide(state, 0.4)[0] == Scale(1, 1, 0, "nobody asked for it for 0.3 s")


# From routes to models ------------------------------------------------------------------------------------


@pytest.fixture
def told() -> list[FleetLoad]:
    return []


@pytest.fixture
def loads(told: list[FleetLoad]) -> Loads:
    shares = {"tiny": {1: 1.0}, "canary": {1: 0.75, 2: 0.25}, "gone": {}}
    found = Loads(shares.__getitem__, least=2)
    found.told = told.append
    return found


def test_what_several_gateways_say_is_added_up(loads: Loads, told: list[FleetLoad]) -> None:
    loads.take("a", Load({"tiny": (1, 3, 9), "canary": (0, 8, 1)}, {5: 2}))
    assert not told[-1].known
    loads.take("b", Load({"tiny": (0, 1, 2), "gone": (0, 3, 3)}, {5: 1, 6: 4}))
    assert told[-1] == FleetLoad(waiting={1: 10, 2: 2}, running={5: 3, 6: 4}, known=True)
    loads.take("b", Load({}, {5: 0}))
    assert told[-1].running == {5: 2, 6: 4}
    loads.forget("a")
    assert told[-1] == FleetLoad(waiting={1: 1}, running={6: 4})


def test_one_that_has_said_nothing_yet_leaves_it_unknown(loads: Loads, told: list[FleetLoad]) -> None:
    loads.take("a", Load())
    loads.take("b", Load())
    assert told[-1].known
    loads.expect("c")
    assert not told[-1].known
    loads.take("c", Load())
    assert told[-1].known


@pytest.mark.parametrize(
    ("name", "kinds", "least"),
    [
        ("", [], 1),
        ("embedded", ["data_path"], 2),
        ("acme", [], None),
        ("acme", ["data_path", "program"], None),
    ],
)
def test_a_gateway_that_never_says_leaves_it_unknown(
    told: list[FleetLoad], name: str, kinds: list[Any], least: int | None
) -> None:
    gateway = ChosenGateway(name=name, processes=tuple(GatewayProcess(kind=each) for each in kinds))
    assert least_to_tell(gateway) == least
    found = Loads(lambda _route: {}, least=least)
    found.told = told.append
    found.take("a", Load())
    found.take("b", Load())
    assert told[-1].known == (least is not None)


def test_what_was_asked_before_a_gateway_came_is_no_news(loads: Loads, told: list[FleetLoad]) -> None:
    loads.take("a", Load({"tiny": (0, 0, 500)}))
    assert told[-1].asked == frozenset()
    loads.take("a", Load({"tiny": (0, 0, 501)}))
    assert told[-1].asked == {1}
    loads.take("a", Load({"canary": (0, 0, 1)}))
    assert told[-1].asked == {1, 2}


def test_a_wake_up_is_for_the_models_that_get_requests(loads: Loads) -> None:
    woken: list[int] = []
    loads.woken = woken.extend
    loads.wake("canary")
    assert woken == [1, 2]
