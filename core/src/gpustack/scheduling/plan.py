"""One decision: a snapshot and a request in, a placement or the whole refusal out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gpustack.scheduling.filters import PIPELINE, Step, sift
from gpustack.scheduling.fit import Deficit, Fit, fit
from gpustack.scheduling.request import Request, Way
from gpustack.scheduling.scorers import SCORERS, Candidate
from gpustack.scheduling.snapshot import Holding, Room, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the instance goes, and with what."""

    instance_id: int
    model_id: int
    worker_id: int
    way: Way
    ram: int
    #: Bytes by GPU index; empty on the CPU.
    vram: Mapping[int, int] = field(default_factory=dict)

    def holding(self) -> Holding:
        """Return what it holds from now on."""
        return Holding(
            instance_id=self.instance_id,
            model_id=self.model_id,
            worker_id=self.worker_id,
            ram=self.ram,
            vram=self.vram,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why it fits nowhere now: by worker the reason it was left out, or what it lacks."""

    request: Request
    workers: int
    steps: tuple[Step, ...] = ()
    #: By worker id the name of the filter it failed, and its reason.
    failed_at: Mapping[int, str] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)
    #: By worker id the nearest miss.
    deficits: Mapping[int, Deficit] = field(default_factory=dict)
    rooms: Mapping[int, Room] = field(default_factory=dict)

    @property
    def for_room_only(self) -> bool:
        """Tell whether memory is all that is missing somewhere."""
        return bool(self.deficits)


def place(snapshot: Snapshot, request: Request) -> Placed | Refused:
    """Return the best place for ``request``, or why there is none.

    Deterministic: GPUs before the CPU, then the model's strategy, then the smaller worker id.
    """
    workers = [room.worker for room in snapshot.rooms.values()]
    verdicts = sift(workers, request, PIPELINE)
    candidates: list[Candidate] = []
    deficits: dict[int, Deficit] = {}
    for worker in verdicts.passed:
        room = snapshot.rooms[worker.id]
        found = list(_ways(room, request))
        fitting = [each for each in found if isinstance(each, Candidate)]
        if fitting:
            candidates.append(fitting[0])
        else:
            deficits[worker.id] = min(
                (each for each in found if isinstance(each, Deficit)), key=lambda each: each.missing
            )
    if candidates:
        best = min(candidates, key=lambda each: _cost(each, request))
        return _placed(best, request)
    return Refused(
        request=request,
        workers=len(workers),
        steps=verdicts.steps,
        failed_at=verdicts.failed_at,
        reasons=verdicts.reasons,
        deficits=deficits,
        rooms=dict(snapshot.rooms),
    )


def _ways(room: Room, request: Request) -> Iterator[Candidate | Deficit]:
    for way in request.offers[room.worker.id].ways:
        if way.backend not in room.worker.backends:
            continue
        match fit(room, way.claim, request.strategy):
            case Fit() as met:
                yield Candidate(room=room, way=way, fit=met)
            case Deficit() as deficit:
                yield deficit


def _cost(candidate: Candidate, request: Request) -> tuple[object, ...]:
    worker_id = candidate.room.worker.id
    return (
        worker_id in request.avoid,
        not candidate.fit.vram,
        SCORERS[request.strategy](candidate, request),
        worker_id,
    )


def _placed(best: Candidate, request: Request) -> Placed:
    return Placed(
        instance_id=request.instance_id,
        model_id=request.model_id,
        worker_id=best.room.worker.id,
        way=best.way,
        ram=best.fit.ram,
        vram=best.fit.vram,
    )
