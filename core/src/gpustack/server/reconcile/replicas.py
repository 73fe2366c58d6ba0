"""As many instances of each model as it asks for, and all of its present description, without a gap.

A changed model rolls: new instances come first, up to ``max_surge`` more than wanted, and old ones drain as far as that
leaves as many running as wanted, less ``max_unavailable``. So new ones that never run leave the old ones alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic
from gpustack.server.reconcile.actions import Action, Create, Drain
from gpustack.server.reconcile.harm import least_harmful_first
from gpustack.server.reconcile.state import State

_S = InstanceState

Instances = list[ModelInstancePublic]


def wanted(state: State) -> Iterator[Action]:
    """Create what is missing, drain what is too much, and replace what its model no longer is."""
    by_model: dict[int, Instances] = {}
    for each in state.instances.values():
        if each.draining_since is None:
            by_model.setdefault(each.model_id, []).append(each)
    for model in sorted(state.models.values(), key=lambda each: each.id):
        mine = by_model.get(model.id, [])
        if len(mine) != model.replicas or any(state.outdated(each) for each in mine):
            yield from _adjust(state, model, mine)


def _adjust(state: State, model: ModelPublic, mine: Instances) -> Iterator[Action]:
    ranked = least_harmful_first(state, mine)
    old = [each for each in ranked if state.outdated(each)]
    new = [each for each in ranked if not state.outdated(each)]
    surplus = [*old, *new[: max(0, len(new) - model.replicas)]]
    running = sum(each.state is _S.RUNNING for each in mine)
    spare = running - (model.replicas - model.rollout.max_unavailable)
    # What does not run serves nobody, but it may come back with its worker while too few run. Of what runs, only as
    # much goes as nobody misses.
    stays = {_S.UNREACHABLE} if spare < 0 else set()
    serving = [each for each in surplus if each.state is _S.RUNNING]
    lost = [each for each in surplus if each.state in stays]
    idle = [each for each in surplus if each.state is not _S.RUNNING and each.state not in stays]
    going = [*idle, *serving[: max(0, spare)]]
    room = model.replicas + model.rollout.max_surge - (len(mine) - len(going) - len(lost))
    missing = min(model.replicas - len(new), room)
    if missing > 0:
        yield Create(model.id, missing)
    for each in going:
        changed = state.outdated(each) and model.replicas > 0
        why = f"model {model.name} " + ("was changed" if changed else f"asks for {model.replicas} now")
        if changed and state.leaving(each):
            why = f"worker {each.worker_name} is in maintenance"
        yield Drain(each.id, why, model.rollout.drain_seconds)


def make_room(state: State, *, skip: Collection[int]) -> Iterator[Drain]:
    """Drain an old instance for a new one that fits nowhere beside it, when nothing else of the model is under way.

    At most one may be missing for that, or as many as ``max_unavailable`` says: new ones that fit but never run must
    not end all old ones.
    """
    waiting = _waiting(state, skip)
    if not waiting:
        return
    by_model: dict[int, Instances] = {number: [] for number in waiting}
    for each in state.instances.values():
        if each.model_id in by_model:
            by_model[each.model_id].append(each)
    for number, (instance_id, old_id) in waiting.items():
        model, mine = state.models[number], by_model[number]
        running = sum(each.state is _S.RUNNING and each.draining_since is None for each in mine)
        spare = running - (model.replicas - max(1, model.rollout.max_unavailable))
        if spare > 0 and not any(_under_way(state, each) for each in mine):
            why = f"model {model.name} was changed, and there is no room for a new instance beside it"
            yield Drain(old_id, why, model.rollout.drain_seconds, instance_id)


def _waiting(state: State, skip: Collection[int]) -> dict[int, tuple[int, int]]:
    """Return, by model, the oldest instance that was refused at the present capacity, and whose end would help it."""
    found: dict[int, tuple[int, int]] = {}
    for number in sorted(state.helped):
        notes, instance = state.notes.get(number), state.instances.get(number)
        if notes is None or instance is None or number in skip or not state.refused_still(number):
            continue
        old = state.instances.get(notes.room_of or 0)
        fitting = old is not None and old.state is _S.RUNNING and state.outdated(old)
        if fitting and instance.state is _S.PENDING and instance.model_id in state.models:
            found.setdefault(instance.model_id, (number, notes.room_of or 0))
    return found


def _under_way(state: State, instance: ModelInstancePublic) -> bool:
    """Tell whether the instance ends, is about to run, or failed: then no other is to end for the change."""
    if instance.state is _S.PENDING:
        return not state.refused_still(instance.id)
    return instance.draining_since is not None or instance.state is not _S.RUNNING
