"""The account of a decision: what each filter left, who had room, and why it went where it went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpustack.kit.text import plural
from gpustack.scheduling.explain import parts
from gpustack.scheduling.filters import PIPELINE, Step, sift
from gpustack.scheduling.fit import Deficit, deficit
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.plan import Placed, has_room
from gpustack.scheduling.request import Request, Way
from gpustack.scheduling.snapshot import Worker
from gpustack.schemas.models import PlacementStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Why a request went where it went."""

    workers: int
    steps: tuple[Step, ...]
    #: Workers with room for it, or for a member of it.
    with_room: int
    #: In sentences, the weightiest first.
    reasons: tuple[str, ...]


def account(fleet: Fleet, request: Request, placed: Placed) -> Account:
    """Return the account of ``placed``, which ``fleet`` answers to ``request`` as it is now."""
    verdicts = sift(fleet.workers(), request, PIPELINE)
    room = [each.id for each in verdicts.passed if has_room(fleet.room(each.id), request)]
    return Account(
        workers=len(fleet),
        steps=verdicts.steps,
        with_room=len(room),
        reasons=tuple(_reasons(fleet, request, placed, verdicts.passed, room)),
    )


def _reasons(
    fleet: Fleet, request: Request, placed: Placed, passed: Sequence[Worker], room: list[int]
) -> Iterator[str]:
    if len(passed) == 1:
        yield "it was the only worker that passed every filter"
    elif len(room) == 1:
        yield f"it was the only one of {len(passed)} possible workers with enough free memory"
    else:
        yield f"{len(room)} of {len(passed)} possible workers had enough free memory"
    if request.gpus is not None:
        yield "its GPUs were chosen by hand"
    if placed.followers:
        yield f"it runs on {len(placed.followers) + 1} workers at once, which all had to have room"
    if request.avoid & set(room):
        if placed.worker_id in request.avoid:
            yield "it was not started there before, but no other worker had room"
        else:
            names = ", ".join(_name(fleet, each) for each in sorted(request.avoid & set(room)))
            yield f"{names} came last, since it was not started there before"
    if len(room) > 1:
        yield _by_strategy(fleet, request, placed)
    if placed.worker_id in request.local:
        yield "the files are on that worker's disk already"
    yield from _without_gpus(fleet, request, placed, passed)


def _by_strategy(fleet: Fleet, request: Request, placed: Placed) -> str:
    if request.strategy is PlacementStrategy.SPREAD:
        same = sum(
            each.model_id == request.model_id and each.instance_id != request.instance_id
            for each in fleet.held_on(placed.worker_id)
        )
        others = plural(same, "other instance") if same else "no other instance"
        return f"its instances are spread: there ran {others} of the model, and the most free memory was left"
    return "GPUs are packed: there the least room for large models was lost"


def _without_gpus(fleet: Fleet, request: Request, placed: Placed, passed: Sequence[Worker]) -> Iterator[str]:
    """Say why what could have GPUs is on the processor, or a part of it in RAM."""
    if placed.followers or (placed.vram and not placed.way.claim.partial):
        return
    some = [each for each in passed if each.gpus]
    if not some:
        return
    with_gpus = [(each, way) for each in some for way in _whole_on_gpus(request, each)]
    where = (
        f"a part of it is in RAM, {plural(placed.way.claim.pieces, 'piece')} on GPUs"
        if placed.vram
        else "it runs on the processor"
    )
    if not with_gpus:
        said = [line for each in some for line in request.offer(each).refusals]
        why = f": {said[0]}" if said else ""
        yield f"{where}, although there are GPUs: no backend serves it on them as it was asked for{why}"
        return
    if request.avoid and any(each.id in request.avoid for each, _ in with_gpus):
        yield f"{where}: no other worker than those where it was not started had enough free GPU memory"
        return
    yield f"{where}: no worker had enough free GPU memory for all of it"
    yield _nearest(fleet, with_gpus)


def _whole_on_gpus(request: Request, worker: Worker) -> list[Way]:
    ways = request.offer(worker).ways
    return [
        each
        for each in ways
        if each.backend in worker.backends and each.claim.gpus and not (each.claim.partial or each.followers)
    ]


def _nearest(fleet: Fleet, ways: Sequence[tuple[Worker, Way]]) -> str:
    """Return what the nearest worker lacked to have all of it on GPUs."""
    misses = [(deficit(fleet.room(worker.id), way.claim, linked=way.linked), worker) for worker, way in ways]

    def far(each: tuple[Deficit, Worker]) -> tuple[int, int, int]:
        return max(0, each[0].gpus_needed - each[0].gpus_present), each[0].distance, each[1].id

    miss, worker = min(misses, key=far)
    return f"nearest was {worker.name}: {'; '.join(parts(fleet.room(worker.id), miss))}"


def _name(fleet: Fleet, worker_id: int) -> str:
    worker = fleet.worker(worker_id)
    return f"worker {worker_id}" if worker is None else f"worker {worker.name}"
