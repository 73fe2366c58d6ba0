"""What is to be placed, and what backends and files say of it on each worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.snapshot import Worker
from gpustack.schemas.models import PlacementStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesThere:
    """Whether the model's files are on a worker; a no has a reason."""

    ready: bool
    reason: str = ""


def place_of(worker_id: int) -> str:
    """Return the place in a way that one worker alone is at."""
    return f"worker {worker_id}"


def is_at(worker: Worker, place: str) -> bool:
    """Tell whether a member that was reckoned for ``place`` may go to ``worker``."""
    return place in ("", worker.kind, place_of(worker.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run the model: a backend at a version, with the memory it takes.

    With ``followers`` it runs on several workers at once, one member on each: all get their room, or none does.
    """

    backend: str
    version: str
    #: Of the only member, or of the one that leads.
    claim: ResourceClaim
    followers: tuple[ResourceClaim, ...] = ()
    #: What each member was reckoned for, the leader first: a kind of workers, or one of them; empty: any that offer this.
    places: tuple[str, ...] = ()
    #: The GPUs of each member must be joined by fast links; without this such GPUs are merely better.
    linked: bool = False

    @property
    def members(self) -> tuple[ResourceClaim, ...]:
        """Return the claims of all members, the leader's first."""
        return (self.claim, *self.followers)

    @property
    def positions(self) -> tuple[tuple[ResourceClaim, str], ...]:
        """Return the claims of all members, each with its place."""
        members = self.members
        return tuple(zip(members, self.places or ("",) * len(members), strict=True))

    def rank(self, index: int) -> tuple[int, int]:
        """Return what ways are tried by, of the way at ``index`` of its offer: GPUs, then a part on them, then the CPU."""
        if not any(claim.gpus for claim in self.members):
            return 2, index
        return (1, -self.claim.pieces) if self.claim.partial else (0, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the backends say of the model on one worker: ways from the best to the least, or why there is none."""

    ways: tuple[Way, ...] = ()
    #: One reason for each backend that refuses the model or its parameters.
    refusals: tuple[str, ...] = ()
    #: One reason for each backend that has no engine for the worker's platform.
    platform_refusals: tuple[str, ...] = ()


NO_OFFER = Offer()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One instance to place.

    What backends offer is by worker in ``offers``, else by the worker's kind in ``kinds``; likewise ``files``, else
    ``files_elsewhere``. Workers that are in neither are not known to serve the model.
    """

    instance_id: int
    model_id: int
    model_name: str
    cluster_id: int
    selector: Mapping[str, str] = field(default_factory=dict)
    strategy: PlacementStrategy = PlacementStrategy.SPREAD
    #: The backend that the model names; empty allows any.
    backend: str = ""
    files: Mapping[int, FilesThere] = field(default_factory=dict)
    files_elsewhere: FilesThere | None = None
    offers: Mapping[int, Offer] = field(default_factory=dict)
    kinds: Mapping[str, Offer] = field(default_factory=dict)
    #: Workers that have the files on their own disk: better than those that must fetch them.
    local: frozenset[int] = frozenset()
    #: GPUs that may be taken, by worker name and index; None are all.
    gpus: Mapping[str, frozenset[int]] | None = None
    #: Higher ones may take the room of lower ones.
    priority: int = 0
    #: Workers to take only when there is no other, since they did not start this instance.
    avoid: frozenset[int] = frozenset()

    def offer(self, worker: Worker) -> Offer:
        """Return what the backends say of the model on ``worker``."""
        return self.offers.get(worker.id) or self.kinds.get(worker.kind, NO_OFFER)

    def files_on(self, worker: Worker) -> FilesThere | None:
        """Return whether the files are on ``worker``, None when it has not been asked."""
        return self.files.get(worker.id, self.files_elsewhere)
