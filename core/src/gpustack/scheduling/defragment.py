"""Moves that would make room: for instances that wait, and whole GPUs. A proposal; nothing is moved here.

    proposal = propose(snapshot, movable=requests_of_those_that_run, waiting=requests_of_those_that_wait)
    for step in proposal.steps: print(f"start {step.instance_id} on worker {step.to.worker_id}, then drain the old one")

Steps are in order, and each is possible while the old instance still holds its memory: the new one starts first, and
the old one is drained once that runs. The same input always gives the same proposal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from gpustack.scheduling.plan import Packing, Placed, Refused, place
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Holding, Room, Snapshot
from gpustack.schemas.models import PlacementStrategy

#: Steps of one proposal: more would be out of date before the last one is done.
MOST_STEPS = 20
#: Workers that are looked at for one instance that waits, nearest miss first.
_NEAREST = 8
#: GPUs that are looked at to be emptied, least filled first.
_LEAST_FILLED = 32
#: Stands for memory that nobody may take while others are moved out of there; no instance has this number.
_CORDON = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Start an instance at ``to``, and drain the one on ``from_worker`` when it runs."""

    instance_id: int
    from_worker: int
    to: Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What to do, and what it is good for."""

    steps: tuple[Step, ...] = ()
    #: Instances that wait, where they fit afterwards.
    placed: tuple[Placed, ...] = ()
    #: GPUs that nothing of ours is on afterwards and was before: worker id and index.
    freed: tuple[tuple[int, int], ...] = ()


def propose(
    snapshot: Snapshot, movable: Iterable[Request], waiting: Iterable[Request] = (), *, most: int = MOST_STEPS
) -> Proposal:
    """Return at most ``most`` steps. ``movable`` asks anew for instances that run, ``waiting`` comes in its order.

    What waits comes before whole GPUs. An instance is moved once at most; one that holds memory on several workers
    stays where it is. Instances of a model that is to be spread are brought together on no worker.
    """
    known = {each.instance_id: each for each in movable}
    plan = _Plan(snapshot, known, most)
    placed: list[Placed] = []
    for request in waiting:
        found = place(plan.snapshot, request)
        if isinstance(found, Refused) and found.for_room_only:
            plan, made = _with_room_for(plan, request, found)
            placed += [made] if made is not None else []
            found = made or found
        if isinstance(found, Placed):
            for holding in found.holdings():
                plan.snapshot = plan.snapshot.hold(holding)
    for worker_id, gpu in _least_filled(plan):
        plan = _emptied(plan, worker_id, gpu) or plan
    # What waited takes GPUs, too, and none of that is gained or lost by moving.
    before, after = _empty(snapshot, snapshot.rooms), _empty(plan.snapshot, snapshot.rooms)
    return Proposal(steps=tuple(plan.steps), placed=tuple(placed), freed=tuple(sorted(after - before)))


def replayed(snapshot: Snapshot, steps: Iterable[Step]) -> Snapshot | None:
    """Return the snapshot after ``steps``; None when one of them does not fit while the old instance is still there."""
    for step in steps:
        room = snapshot.rooms[step.to.worker_id]
        held = snapshot.hold(step.to.holding())
        after = held.rooms[room.worker.id]
        taken = after.ram_claimed - room.ram_claimed
        if taken > room.ram_free or any(
            step.to.vram.get(gpu.index, 0) > room.vram_free(gpu) for gpu in room.worker.gpus
        ):
            return None
        snapshot = held.release(step.instance_id)
    return snapshot


class _Plan:
    """The fleet after the steps so far."""

    def __init__(
        self, snapshot: Snapshot, movable: dict[int, Request], most: int, steps: Sequence[Step] = ()
    ) -> None:
        self.snapshot = snapshot
        self.movable = movable
        self.most = most
        self.steps = list(steps)

    def copy(self) -> _Plan:
        """Return a plan that may be given up."""
        return _Plan(self.snapshot, self.movable, self.most, self.steps)

    def move(self, holding: Holding, cordon: Holding, strategy: PlacementStrategy | None = None) -> bool:
        """Move what holds ``holding`` to where ``cordon`` is not; False when it cannot go anywhere."""
        request = self.movable.get(holding.instance_id)
        if request is None or len(self.steps) >= self.most:
            return False
        # The new one holds its memory beside the old one, so it has a number of its own.
        anew = replace(request, instance_id=-request.instance_id, strategy=strategy or request.strategy)
        # Best fit, since the cordon makes its worker look broken, where others would gather.
        placed = place(self.snapshot.hold(cordon), anew, Packing.BEST_FIT)
        if not isinstance(placed, Placed) or _stays(placed, holding) or _is_worse(placed, holding):
            return False
        if placed.followers:
            return False  # what is on one worker is not taken apart for others
        if request.strategy is PlacementStrategy.SPREAD and self._meets(placed, holding):
            return False
        self.steps.append(
            Step(instance_id=request.instance_id, from_worker=holding.worker_id, to=placed),
        )
        self.snapshot = self.snapshot.hold(placed.holding()).release(request.instance_id)
        return True

    def held(self, worker_id: int, gpu: int | None) -> list[Holding]:
        """Return what is held on a GPU, or on the whole worker, the smallest first."""
        found = [
            each
            for each in self.snapshot.rooms[worker_id].holdings
            if gpu is None or each.vram.get(gpu, 0) > 0
        ]
        return sorted(found, key=lambda each: (sum(each.vram.values()), each.ram, each.instance_id))

    def _meets(self, placed: Placed, holding: Holding) -> bool:
        """Tell whether another instance of the model is there already."""
        if placed.worker_id == holding.worker_id:
            return False
        there = self.snapshot.rooms[placed.worker_id].holdings
        return any(each.model_id == placed.model_id for each in there)


def _with_room_for(plan: _Plan, request: Request, refused: Refused) -> tuple[_Plan, Placed | None]:
    """Return the plan with the fewest more steps after which ``request`` fits; the same plan when there is none."""
    near = sorted(refused.deficits, key=lambda worker: (refused.deficits[worker].missing, worker))
    best: tuple[_Plan, Placed] | None = None
    for worker_id in near[:_NEAREST]:
        gpus = refused.deficits[worker_id].claim.gpus
        found = _room_on(plan, request, worker_id, with_gpus=gpus > 0)
        if found is not None and (best is None or len(found[0].steps) < len(best[0].steps)):
            best = found
    return best or (plan, None)


def _room_on(
    plan: _Plan, request: Request, worker_id: int, *, with_gpus: bool
) -> tuple[_Plan, Placed] | None:
    """Move out of a worker, or out of more and more of its GPUs, until ``request`` fits; None when it never does."""
    for gpus in _ever_more(plan.snapshot.rooms[worker_id]) if with_gpus else [()]:
        trial = plan.copy()
        held = [each for gpu in gpus or (None,) for each in trial.held(worker_id, gpu)]
        for holding in {each.instance_id: each for each in held}.values():
            room = trial.snapshot.rooms[worker_id]
            if not trial.move(holding, _cordon(room, gpus)):
                continue
            if isinstance(place(trial.snapshot, request), Placed):
                return _pruned(plan, trial, request)
    return None


def _pruned(plan: _Plan, trial: _Plan, request: Request) -> tuple[_Plan, Placed]:
    """Leave out the steps of ``trial`` beyond those of ``plan`` without which ``request`` fits as well."""
    added = trial.steps[len(plan.steps) :]
    for step in list(added):
        fewer = [each for each in added if each is not step]
        snapshot = replayed(plan.snapshot, fewer)
        if snapshot is not None and isinstance(place(snapshot, request), Placed):
            added = fewer
    snapshot = replayed(plan.snapshot, added)
    assert snapshot is not None, "each step was possible when it was added"
    placed = place(snapshot, request)
    assert isinstance(placed, Placed)
    return _Plan(snapshot, plan.movable, plan.most, [*plan.steps, *added]), placed


def _emptied(plan: _Plan, worker_id: int, gpu: int) -> _Plan | None:
    """Return the plan with everything moved away from a GPU; None when that frees no more GPUs than it takes."""
    trial = plan.copy()
    for holding in trial.held(worker_id, gpu):
        cordon = _cordon(trial.snapshot.rooms[worker_id], (gpu,))
        if not trial.move(holding, cordon, PlacementStrategy.BINPACK):
            return None
    touched = {worker_id, *(each.to.worker_id for each in trial.steps)}
    gained = len(_empty(trial.snapshot, touched)) > len(_empty(plan.snapshot, touched))
    return trial if gained else None


def _least_filled(plan: _Plan) -> list[tuple[int, int]]:
    """Return GPUs with something on them that may be moved, by worker id and index."""
    found = [
        (claimed, worker_id, index)
        for worker_id, room in plan.snapshot.rooms.items()
        for index, claimed in room.vram_claimed.items()
        if claimed > 0 and all(each.instance_id in plan.movable for each in plan.held(worker_id, index))
    ]
    return [(worker_id, index) for _, worker_id, index in sorted(found)[:_LEAST_FILLED]]


def _ever_more(room: Room) -> Iterator[tuple[int, ...]]:
    """Yield the least filled GPU that something is on, then the two least filled, and so on."""
    used = sorted((claimed, index) for index, claimed in room.vram_claimed.items() if claimed > 0)
    for count in range(1, len(used) + 1):
        yield tuple(index for _, index in used[:count])


def _cordon(room: Room, gpus: Sequence[int]) -> Holding:
    """Return a holding that takes what is free of these GPUs, or of the processor's memory when there are none."""
    free = {gpu.index: room.vram_free(gpu) for gpu in room.worker.gpus if gpu.index in gpus}
    ram = 0 if gpus else room.ram_free
    return Holding(instance_id=_CORDON, model_id=0, worker_id=room.worker.id, ram=ram, vram=free)


def _stays(placed: Placed, holding: Holding) -> bool:
    """Tell whether the move would lead to where the instance is."""
    return placed.worker_id == holding.worker_id and placed.vram.keys() == holding.vram.keys()


def _is_worse(placed: Placed, holding: Holding) -> bool:
    """Tell whether it would have less of GPUs there, and so be slower."""
    return sum(placed.vram.values()) < sum(holding.vram.values())


def _empty(snapshot: Snapshot, workers: Iterable[int]) -> set[tuple[int, int]]:
    """Return the GPUs of these workers that nothing of ours is on."""
    return {
        (worker_id, gpu.index)
        for worker_id in workers
        for gpu in snapshot.rooms[worker_id].worker.gpus
        if not snapshot.rooms[worker_id].vram_claimed.get(gpu.index, 0)
    }
