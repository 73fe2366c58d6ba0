"""The account of a decision: what each filter left, who had room, and why it went where it went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpustack.kit.text import plural
from gpustack.scheduling.filters import PIPELINE, Step, sift
from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.plan import Placed, has_room
from gpustack.scheduling.request import Request, Way
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
        reasons=tuple(_reasons(fleet, request, placed, len(verdicts.passed), room)),
    )


def _reasons(fleet: Fleet, request: Request, placed: Placed, passed: int, room: list[int]) -> Iterator[str]:
    if passed == 1:
        yield "it was the only worker that passed every filter"
    elif len(room) == 1:
        yield f"it was the only one of {passed} possible workers with enough free memory"
    else:
        yield f"{len(room)} of {passed} possible workers had enough free memory"
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
    if not placed.vram and any(claim.gpus for way in _ways(fleet, request, room) for claim in way.members):
        yield "it runs on the processor: no worker had enough free GPU memory"


def _by_strategy(fleet: Fleet, request: Request, placed: Placed) -> str:
    if request.strategy is PlacementStrategy.SPREAD:
        same = sum(
            each.model_id == request.model_id and each.instance_id != request.instance_id
            for each in fleet.held_on(placed.worker_id)
        )
        others = plural(same, "other instance") if same else "no other instance"
        return f"its instances are spread: there ran {others} of the model, and the most free memory was left"
    return "GPUs are packed: there the least room for large models was lost"


def _ways(fleet: Fleet, request: Request, room: list[int]) -> Iterator[Way]:
    for each in room:
        worker = fleet.worker(each)
        if worker is not None:
            yield from request.offer(worker).ways


def _name(fleet: Fleet, worker_id: int) -> str:
    worker = fleet.worker(worker_id)
    return f"worker {worker_id}" if worker is None else f"worker {worker.name}"
