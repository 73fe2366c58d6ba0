"""As many instances of each model as it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic
from gpustack.server.reconcile.actions import Action, Create, Delete
from gpustack.server.reconcile.state import State

_S = InstanceState

#: Who goes first when there are too many: the least useful. States not named come in between.
_HARM = {_S.ERROR: 0, _S.UNREACHABLE: 1, _S.PENDING: 2, _S.ANALYZING: 2, _S.SCHEDULED: 3, _S.RUNNING: 5}


def wanted(state: State) -> Iterator[Action]:
    """Create what is missing, delete what is too much, and replace what its model no longer is."""
    by_model: dict[int, list[ModelInstancePublic]] = {}
    for each in state.instances.values():
        by_model.setdefault(each.model_id, []).append(each)
    for model in sorted(state.models.values(), key=lambda each: each.id):
        mine = by_model.get(model.id, [])
        if len(mine) < model.replicas:
            yield Create(model.id, model.replicas - len(mine))
        elif len(mine) > model.replicas:
            surplus = sorted(mine, key=lambda each: _harm(state, each))
            for each in surplus[: len(mine) - model.replicas]:
                yield Delete(each.id, f"model {model.name} asks for {model.replicas} now")
        else:
            yield from _replace(state, model, mine)


def _harm(state: State, instance: ModelInstancePublic) -> tuple[bool, int, int]:
    """Return a rank: what runs is kept, then what is up to date, then what is older."""
    running = instance.state is _S.RUNNING
    return running and not state.outdated(instance), _HARM.get(instance.state, 4), -instance.id


def _replace(state: State, model: ModelPublic, mine: list[ModelInstancePublic]) -> Iterator[Action]:
    """Delete instances of an older description: those that do not run at once, the others one by one."""
    why = f"model {model.name} was changed"
    old = [each for each in mine if state.outdated(each)]
    idle = [each for each in old if each.state is not _S.RUNNING]
    if idle:
        yield from (Delete(each.id, why) for each in sorted(idle, key=lambda each: each.id))
    elif old and all(each.state is _S.RUNNING for each in mine):
        yield Delete(min(each.id for each in old), why)
