"""What is to be placed, and what backends and files say of it on each worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpustack.plugin.values import ResourceClaim
from gpustack.schemas.models import PlacementStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesThere:
    """Whether the model's files are on a worker; a no has a reason."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run the model on a worker: a backend at a version, with the memory it takes there."""

    backend: str
    version: str
    claim: ResourceClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the backends say of the model on one worker: ways from the best to the least, or why there is none."""

    ways: tuple[Way, ...] = ()
    #: One reason for each backend that refuses the model or its parameters.
    refusals: tuple[str, ...] = ()
    #: One reason for each backend that has no engine for the worker's platform.
    platform_refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One instance to place. Workers missing in ``files`` or ``offers`` are not known to serve the model."""

    instance_id: int
    model_id: int
    model_name: str
    cluster_id: int
    selector: Mapping[str, str] = field(default_factory=dict)
    strategy: PlacementStrategy = PlacementStrategy.SPREAD
    #: The backend that the model names; empty allows any.
    backend: str = ""
    files: Mapping[int, FilesThere] = field(default_factory=dict)
    offers: Mapping[int, Offer] = field(default_factory=dict)
    #: Workers to take only when there is no other, since they did not start this instance.
    avoid: frozenset[int] = frozenset()
