"""Why the instances of a model are where they are, or nowhere."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from gpustack.schemas.common import Output
from gpustack.schemas.instances import InstanceState


class Outcome(StrEnum):
    """What there is to explain of an instance."""

    #: It has its place.
    PLACED = "placed"
    #: It fits nowhere now, and is looked at again when something changes.
    WAITING = "waiting"
    #: It fits nowhere, and will not before somebody changes something.
    REFUSED = "refused"
    #: It would fit now: the decision is under way.
    FITS = "fits"
    #: Its files are being read, or backends asked, before anything can be decided.
    NOT_DECIDED = "not-decided"


class FilterCount(Output):
    """How many of ``asked`` workers passed one filter; each is asked about those that passed the ones before."""

    #: Completes "3 of 5 workers …".
    name: str
    matched: int
    asked: int


class GpuDeficit(Output):
    """What one GPU lacks, in MiB."""

    index: int
    needed_mib: int
    free_mib: int
    missing_mib: int


class NearMiss(Output):
    """A worker that was not chosen: what is missing there, or the filter that it failed."""

    worker_id: int
    worker_name: str
    #: As a line for people.
    reason: str
    #: The filter that it failed; empty when only room is missing.
    failed: str = ""
    ram_missing_mib: int = 0
    gpus: list[GpuDeficit] = []
    gpus_needed: int = 0
    gpus_present: int = 0


class Seat(Output):
    """Room on one worker, in MiB; ``vram_mib`` is by the index of the GPU."""

    worker_id: int
    worker_name: str
    ram_mib: int
    vram_mib: dict[int, int] = {}


class ProposedMove(Output):
    """An instance that would have to run elsewhere."""

    instance_id: int
    instance_name: str
    model_name: str
    to: list[Seat]


class Remedy(Output):
    """Something that would make it fit. It was tried: ``seats`` is where the instance went then.

    Without seats it could not be tried, since the model's files have not been read there yet.
    """

    #: Completes "it would fit …".
    what: str
    seats: list[Seat]
    moves: list[ProposedMove] = []
    #: The model's ``backend_parameters`` then; None where they stay.
    backend_parameters: list[str] | None = None


class InstanceExplanation(Output):
    """Why an instance is where it is, or nowhere."""

    instance_id: int
    instance_name: str
    state: InstanceState
    outcome: Outcome
    #: One line.
    summary: str
    #: More lines: why this worker, or what else is to be known.
    reasons: list[str] = []
    seats: list[Seat] = []
    backend: str = ""
    backend_version: str = ""
    #: Workers there were.
    workers: int = 0
    filters: list[FilterCount] = []
    #: Workers that had room, of those that passed all filters.
    with_room: int | None = None
    near_misses: list[NearMiss] = []
    remedies: list[Remedy] = []
    #: The decision that this tells of, where it is kept; a waiting instance is decided on anew.
    decision_id: int | None = None
    decided_at: datetime | None = None
    #: The recorded decision was made again, with the same answer; None when there was nothing to make again.
    replayed: bool | None = None


class ModelExplanation(Output):
    """Why the instances of a model are where they are, or nowhere."""

    model_id: int
    model_name: str
    replicas: int
    ready_replicas: int
    instances: list[InstanceExplanation]
