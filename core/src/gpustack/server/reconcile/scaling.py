"""Models whose replicas follow what is asked of them: what gateways and workers say, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic
from gpustack.server.reconcile.actions import Scale
from gpustack.server.reconcile.autoscale import Decision, Demand, History, Policy, decide

if TYPE_CHECKING:
    from gpustack.server.reconcile.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """What all gateways have to do, as far as they have said. Models and instances by id; those without any are left out."""

    #: Requests that wait for a turn or a start, by model.
    waiting: Mapping[int, int] = field(default_factory=dict)
    #: Requests at instances.
    running: Mapping[int, int] = field(default_factory=dict)
    #: Models that were asked for since the last time.
    asked: frozenset[int] = frozenset()
    #: Whether anybody says anything at all: otherwise it is not known that nothing is asked.
    known: bool = False


class Scaling:
    """What is remembered of the load, by model."""

    def __init__(self) -> None:
        self.load = FleetLoad()
        #: The part of its KV cache that each instance has in use, by the worker that says so.
        self._caches: dict[int, Mapping[int, float]] = {}
        #: Some caches are fuller or emptier than at the last look.
        self._stirred = False
        self._histories: dict[int, History] = {}
        #: When the decision about a model may be another one by time alone.
        self.again: dict[int, float] = {}
        #: Who is waited for before the model's row was read.
        self._woken: set[int] = set()

    def take(self, state: State, load: FleetLoad, now: float) -> bool:
        """Take in what there is to do now; return True when something may follow."""
        self.load = load
        return self._look(state, now)

    def note_caches(self, worker_id: int, caches: Mapping[int, float]) -> None:
        """Note how full the KV caches of a worker's instances are; what it says no longer is forgotten."""
        if caches != self._caches.get(worker_id, {}):
            self._caches[worker_id] = caches
            self._stirred = True

    def look_at_caches(self, state: State, now: float) -> bool:
        """Return True when something may follow from what was noted since the last time."""
        stirred, self._stirred = self._stirred, False
        return stirred and self._look(state, now)

    def wake(self, models: Collection[int]) -> None:
        """Start those of these models that are asleep: somebody waits for them."""
        self._woken.update(models)

    def requests_at(self, instance_id: int) -> int:
        """Return how many requests an instance works on, as far as is known."""
        return self.load.running.get(instance_id, 0)

    def forget_worker(self, worker_id: int) -> None:
        """Forget what a worker has said."""
        self._caches.pop(worker_id, None)

    def forget_model(self, model_id: int) -> None:
        """Forget that somebody waits for a model: it was removed."""
        self._woken.discard(model_id)

    def decisions(self, state: State, now: float) -> Iterator[tuple[ModelPublic, Decision]]:
        """Return what is to become of each model that is scaled."""
        scaled = [each for each in state.models.values() if each.min_replicas is not None]
        known = {each.id for each in scaled}
        self._keep(known)
        if not scaled:
            return
        demands = self._demands(state, known)
        for model in scaled:
            policy = Policy.of(model)
            if policy is not None:
                yield model, self._decision(state, model, policy, demands.get(model.id, Demand()), now)

    def _keep(self, models: Collection[int]) -> None:
        """Forget what is remembered of all but these models: a time that is over, of one that is gone, would come for ever."""
        for remembered in (self._histories, self.again):
            for number in [each for each in remembered if each not in models]:
                del remembered[number]

    def _decision(
        self, state: State, model: ModelPublic, policy: Policy, demand: Demand, now: float
    ) -> Decision:
        history = self._histories.get(model.id)
        if history is None or not (self.load.known or model.replicas == 0):
            history = self._histories[model.id] = History(now)
        if model.id in self.load.asked or _is_starting(state, model):
            history.active(now)
        if model.id in self._woken:
            history.active(now)
            self._woken.discard(model.id)
            history.woken = True
        if model.replicas > 0:
            history.woken = False
        history.note(demand, policy, now)
        decision = decide(policy, history, replicas=model.replicas, now=now)
        if decision.again is None:
            self.again.pop(model.id, None)
        else:
            self.again[model.id] = decision.again
        return decision

    def _demands(self, state: State, scaled: Collection[int]) -> dict[int, Demand]:
        outstanding = {number: count for number, count in self.load.waiting.items() if number in scaled}
        for number, count in self.load.running.items():
            model = _scaled_model(state.instances.get(number), scaled)
            if model is not None:
                outstanding[model] = outstanding.get(model, 0) + count
        caches: dict[int, float] = {}
        for worker_id, told in self._caches.items():
            for number, used in told.items():
                instance = state.instances.get(number)
                model = _scaled_model(instance, scaled)
                if instance is None or model is None or instance.worker_id != worker_id:
                    continue  # a worker tells of its own alone
                if instance.state is InstanceState.RUNNING:
                    caches[model] = caches.get(model, 0.0) + used
        return {
            number: Demand(outstanding=outstanding.get(number, 0), kv_caches=caches.get(number, 0.0))
            for number in {*outstanding, *caches}
        }

    def _look(self, state: State, now: float) -> bool:
        before = dict(self.again)
        wanted = any(decision.replicas != model.replicas for model, decision in self.decisions(state, now))
        # A model that was asked for counts as asked for once.
        self.load = FleetLoad(waiting=self.load.waiting, running=self.load.running, known=self.load.known)
        return wanted or any(due < before.get(number, float("inf")) for number, due in self.again.items())


def wanted(state: State, now: float) -> Iterator[Scale]:
    """Have more or fewer instances of the models whose load says so."""
    for model, decision in state.scaling.decisions(state, now):
        if decision.replicas != model.replicas:
            yield Scale(model.id, model.replicas, decision.replicas, decision.why)


def _scaled_model(instance: ModelInstancePublic | None, scaled: Collection[int]) -> int | None:
    """Return the model of an instance that is to stay, when it is one of these."""
    if instance is None or instance.draining_since is not None or instance.model_id not in scaled:
        return None
    return instance.model_id


def _is_starting(state: State, model: ModelPublic) -> bool:
    """Tell whether the model is about to answer for the first time: nobody could ask for it yet."""
    if model.replicas == 0 or model.ready_replicas:
        return False
    return not any(each.state is InstanceState.ERROR for each in state.instances_of(model.id))
