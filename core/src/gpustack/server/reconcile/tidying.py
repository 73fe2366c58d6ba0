"""What to propose so that memory lies together again: who may be moved, and the proposal in names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gpustack.scheduling import Placed, Proposal, Request
from gpustack.schemas import (
    Defragmentation,
    DefragmentationStep,
    FreedGpu,
    InstanceState,
    ModelInstancePublic,
    RoomForInstance,
)
from gpustack.server.reconcile.placing import anew, by_priority
from gpustack.server.reconcile.questions import Question
from gpustack.server.reconcile.state import State

_S = InstanceState


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Who may be moved, who waits in what order, and what backends have to say first of somebody."""

    movable: tuple[Request, ...]
    waiting: tuple[Request, ...]
    open: Collection[Question]


def wishes(state: State, now: float) -> Wishes:
    """Return what to plan with. Of whom backends or files say nothing yet stays where it is."""
    known, open_ = anew(state, (*_settled(state), *_waiting(state)), now)
    return Wishes(
        movable=tuple(known[each.id] for each in _settled(state) if each.id in known),
        waiting=tuple(known[each.id] for each in by_priority(state, _waiting(state)) if each.id in known),
        open=open_,
    )


def _settled(state: State) -> Iterator[ModelInstancePublic]:
    """Return those that run and are to stay as they are; what a rollout exchanges moves anyway.

    What spans workers is not moved: that is long to load, and on all of them at once.
    """
    for each in state.instances.values():
        if (
            each.state is _S.RUNNING
            and not each.members
            and each.draining_since is None
            and not state.outdated(each)
        ):
            yield each


def _waiting(state: State) -> Iterator[ModelInstancePublic]:
    """Return those without a place."""
    for each in state.instances.values():
        if each.worker_id is None and each.state in (_S.PENDING, _S.ANALYZING):
            yield each


def described(state: State, proposal: Proposal) -> Defragmentation:
    """Return the proposal with names. What has been deleted meanwhile makes it worthless: then it has no steps."""
    try:
        return Defragmentation(
            steps=[
                DefragmentationStep(
                    **_of(state, each.instance_id),
                    from_worker_id=each.from_worker,
                    from_worker=state.workers[each.from_worker].name,
                    to_worker_id=each.to.worker_id,
                    to_worker=state.workers[each.to.worker_id].name,
                    to_gpus=sorted(each.to.vram),
                )
                for each in proposal.steps
            ],
            placed=[_room_for(state, each) for each in proposal.placed],
            freed_gpus=[
                FreedGpu(worker_id=worker, worker_name=state.workers[worker].name, index=index)
                for worker, index in proposal.freed
            ],
        )
    except KeyError:
        return Defragmentation()


def _room_for(state: State, placed: Placed) -> RoomForInstance:
    return RoomForInstance(
        **_of(state, placed.instance_id),
        worker_id=placed.worker_id,
        worker_name=state.workers[placed.worker_id].name,
        gpus=sorted(placed.vram),
    )


def _of(state: State, instance_id: int) -> dict[str, int | str]:
    instance = state.instances[instance_id]
    return {
        "instance_id": instance.id,
        "instance_name": instance.name,
        "model_id": instance.model_id,
        "model_name": instance.model_name,
    }
