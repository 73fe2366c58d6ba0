"""From the state and the time to a list of actions. Pure: nothing is waited for, asked or written here.

Each instance and worker is in at most one action of a list, except that an instance may be scheduled right
after another one was: later decisions of a list see the memory that earlier ones took.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpustack.schemas import InstanceState, source_key
from gpustack.server.reconcile import clock, placing, replicas, scaling
from gpustack.server.reconcile.actions import Action, SetCategories, SetReady
from gpustack.server.reconcile.state import State


def decide(state: State, now: float) -> list[Action]:
    """Return everything that is to be done now, empty when observed and wanted agree."""
    actions: list[Action] = [*scaling.wanted(state, now)]
    if actions:
        return actions  # how many instances there are to be comes before which
    actions = [*clock.workers(state, now), *replicas.wanted(state)]
    taken = {each for action in actions for each in _instances(action)}
    for action in clock.instances(state, now):
        if not taken & set(_instances(action)):
            taken.update(_instances(action))
            actions.append(action)
    actions += placing.unplaced(state, now, skip=taken)
    actions += replicas.make_room(state, skip={each for action in actions for each in _instances(action)})
    actions += _keep_counts(state)
    return actions


def _instances(action: Action) -> tuple[int, ...]:
    many: tuple[int, ...] = getattr(action, "instances", ())
    one: int | None = getattr(action, "instance_id", None)
    return many if one is None else (*many, one)


def _keep_counts(state: State) -> Iterator[Action]:
    running: dict[int, int] = {}
    for each in state.instances.values():
        if each.state is InstanceState.RUNNING and each.draining_since is None:
            running[each.model_id] = running.get(each.model_id, 0) + 1
    for model in state.models.values():
        if running.get(model.id, 0) != model.ready_replicas:
            yield SetReady(model.id, running.get(model.id, 0))
        found = state.categories.get(source_key(model))
        if found is not None and list(found) != model.categories:
            yield SetCategories(model.id, found)
