"""The values that the state of reconcile is made of, beside the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpustack.lifecycle.instance import Deadlines
from gpustack.plugin.memory import Learned, MemoryKey
from gpustack.scheduling import Holding
from gpustack.scheduling.fleet import Watch
from gpustack.schemas import (
    InferenceBackendRow,
    ModelFilePublic,
    ModelInstancePublic,
    ModelPublic,
    WorkerPublic,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that the reconciler goes by; tests make them short."""

    deadlines: Deadlines = field(default_factory=Deadlines)
    #: Without a heartbeat for this long a worker is unreachable.
    heartbeat_loss: float = 20.0
    #: How long the answers of slow workers are waited for when others have the files.
    patience: float = 5.0
    #: After a start of the server nothing is overdue for this long: workers could not report before.
    grace: float = 30.0
    #: More than half of at least ``fleet`` workers silent within ``storm`` seconds: the server is cut off.
    #: Beyond its time to drain, an instance has this long to be reported ended.
    slack: float = 30.0
    storm: float = 60.0
    fleet: int = 10
    #: When the network is whole again its workers come back one by one, within this time.
    recovery: float = 30.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The moment of a refusal: by the fleet, and by the count of changes of the model's files."""

    watch: Watch
    file_news: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Room that an instance gets once others have left, and that nobody of lower priority may take meanwhile."""

    priority: int
    #: At least one.
    holdings: tuple[Holding, ...]
    #: Some were made to leave for it.
    bought: bool
    #: When it ends, kept or not, so that one who never leaves does not block others for ever.
    until: float


@dataclass(slots=True, kw_only=True)
class Notes:
    """What is remembered of an instance beside its row."""

    #: When it entered its state.
    since: float
    #: When it was last refused, also in seconds; None before the first look.
    parked: Refusal | None = None
    looked: float = 0.0
    #: An old instance of its model that would have left room for it, when it was last refused.
    room_of: int | None = None
    #: Workers that were asked for its files.
    asked: set[int] = field(default_factory=set)
    #: In ERROR before it was placed: the workers that could not serve it, so that only others are tried.
    tried: frozenset[str] = frozenset()
    #: Try again although nothing else changed.
    retry: bool = False
    #: Workers that did not take it.
    avoid: frozenset[int] = frozenset()
    #: Since when it drains.
    draining: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What others than our instances used on a worker when it was last measured; ``vram`` by GPU index."""

    ram: int = 0
    vram: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """All rows of one reading of the database."""

    models: Sequence[ModelPublic]
    instances: Sequence[ModelInstancePublic]
    workers: Sequence[WorkerPublic]
    files: Sequence[ModelFilePublic]
    backends: Sequence[InferenceBackendRow] = ()
    #: What earlier starts measured.
    peaks: Mapping[MemoryKey, Learned] = field(default_factory=dict)
