"""What follows from time alone: states that last too long, and workers that fell silent."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from gpustack.lifecycle.instance import HOLDS_CLAIM, overdue
from gpustack.schemas import InstanceState, MemberState, ModelInstancePublic, WorkerPublic, WorkerState
from gpustack.server.reconcile.actions import (
    Action,
    Again,
    Fail,
    Finish,
    LoseWorker,
    Move,
    Restart,
    ReturnWorker,
)
from gpustack.server.reconcile.placing import prints
from gpustack.server.reconcile.state import State

_S = InstanceState


def workers(state: State, now: float) -> Iterator[Action]:
    """Note who fell silent and who came back. When the server itself seems cut off, nobody is lost."""
    spared = cut_off(state, now)
    placed: dict[int, list[ModelInstancePublic]] = {}
    for each in state.instances.values():
        if each.state is not _S.UNREACHABLE:
            for worker_id in each.worker_ids:
                placed.setdefault(worker_id, []).append(each)
    for worker in sorted(state.workers.values(), key=lambda each: each.id):
        quiet = silence(state, worker, now)
        lost = worker.state is WorkerState.UNREACHABLE
        if quiet <= state.limits.heartbeat_loss:
            if lost:
                yield ReturnWorker(worker.id)
        elif worker.id not in spared and (not lost or worker.id in placed):
            mine = tuple(sorted(each.id for each in placed.get(worker.id, ())))
            yield LoseWorker(worker.id, f"no sign of life for {state.limits.heartbeat_loss:.0f} s", mine)


def suspects(state: State, now: float) -> frozenset[int]:
    """Return the workers that would be lost now, by what was heard in this process alone."""
    return frozenset(
        worker.id
        for worker in state.workers.values()
        if worker.state is not WorkerState.UNREACHABLE
        and silence(state, worker, now) > state.limits.heartbeat_loss
    )


def silence(state: State, worker: WorkerPublic, now: float) -> float:
    """Return the seconds since the last sign of life."""
    return now - state.seen.get(worker.id, state.loaded_at)


def cut_off(state: State, now: float) -> frozenset[int]:
    """Return the workers that are silent only because the server is cut off from most of its fleet.

    They are those whose last signs of life lie within ``storm`` seconds of each other, when they are more than
    half of all workers that were alive at that time, and those were at least ``fleet``. Who is late counts among them
    before it would be lost: or the first to be due would be given up before most are.
    """
    limits = state.limits
    if len(state.workers) < limits.fleet:
        return frozenset()
    last: list[float] = []
    quiet: list[tuple[float, int]] = []
    for each in state.workers.values():
        seconds = silence(state, each, now)
        last.append(now - seconds)
        if seconds > state.late(each.id):
            quiet.append((now - seconds, each.id))
        elif (outage := state.outages.get(each.id)) is not None and now - outage[1] <= limits.recovery:
            # The others are not lost as soon as the first half of them is back.
            quiet.append((outage[0], each.id))
    if len(quiet) * 2 <= limits.fleet:
        return frozenset()
    last.sort()
    quiet.sort()
    spared: set[int] = set()
    end = 0
    for first, (when, _) in enumerate(quiet):
        alive = len(last) - bisect_left(last, when)
        while end < len(quiet) and quiet[end][0] <= when + limits.storm:
            end += 1
        if alive >= limits.fleet and 2 * (end - first) > alive:
            spared.update(worker_id for _, worker_id in quiet[first:end])
    return frozenset(spared)


def silence_of_most(state: State, now: float) -> str:
    """Return the line that says that nobody is lost although many are silent; empty when nobody is spared."""
    spared = cut_off(state, now)
    if not spared:
        return ""
    return (
        f"{len(spared)} of {len(state.workers)} workers fell silent within {state.limits.storm:.0f} s: the server seems "
        "to be cut off from them, so they keep their instances and nothing is placed anew; check the server's network"
    )


def instances(state: State, now: float) -> Iterator[Action]:
    """End what lasts too long, and free what is on a worker that no longer exists."""
    spared = cut_off(state, now)
    for instance in sorted(state.instances.values(), key=lambda each: each.id):
        if instance.draining_since is not None:
            if instance.worker_id is None or (due := state.due(instance)) is None or due <= now:
                yield Finish(instance.id, "its time to end is over")
        elif _lost_its_worker(state, instance):
            yield _without_worker(state, instance)
        elif spared.intersection(instance.worker_ids):
            continue
        elif (due := state.due(instance)) is not None and due <= now:
            yield from _overdue(state, instance)


def _lost_its_worker(state: State, instance: ModelInstancePublic) -> bool:
    if instance.worker_id is None:
        return instance.state in HOLDS_CLAIM and instance.state is not _S.ERROR
    return not all(each in state.workers for each in instance.worker_ids)


def _without_worker(state: State, instance: ModelInstancePublic) -> Action:
    message = f"worker {_gone(state, instance)} was removed; placing the instance again"
    # A running instance may only leave its worker by way of UNREACHABLE.
    if instance.state is _S.RUNNING:
        return Move(instance.id, _S.UNREACHABLE, message)
    return Restart(instance.id, message)


def _whose(instance: ModelInstancePublic) -> str:
    """Return the names of the workers that an overdue instance waits for."""
    slow = {MemberState.UNREACHABLE} if instance.state is _S.UNREACHABLE else {MemberState.ASSIGNED}
    names = [each.worker_name for each in instance.members if each.state in slow]
    return ", ".join(names) or instance.worker_name


def _gone(state: State, instance: ModelInstancePublic) -> str:
    gone = (each.worker_name for each in instance.members if each.worker_id not in state.workers)
    return next(gone, instance.worker_name)


def _overdue(state: State, instance: ModelInstancePublic) -> Iterator[Action]:
    if instance.state is _S.ERROR:
        yield Again(instance.id)
        return
    seconds = state.allowed(instance) or 0.0
    step = overdue(instance.state, _whose(instance), seconds)
    if step is None:
        return
    if instance.members and step.state is _S.ERROR:
        # What its members wait for does not come: others may do better.
        yield Restart(instance.id, f"{step.message}\nplacing the instance again")
        return
    if instance.state is _S.ANALYZING:
        model = state.models.get(instance.model_id)
        spec = instance.spec_digest if model is None else model.spec_digest
        yield Fail(instance.id, step.message, prints(state, instance), spec)
    elif step.state is _S.PENDING:
        alone = not instance.members  # of several it may be any
        avoid = instance.worker_id if alone and instance.state is _S.SCHEDULED else None
        yield Restart(instance.id, step.message, avoid)
    else:
        yield Move(instance.id, step.state, step.message)
