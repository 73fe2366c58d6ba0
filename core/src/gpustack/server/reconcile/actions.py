"""What reconcile may decide to do. Values only; :mod:`.execute` has the hands."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpustack.scheduling import Placed
from gpustack.schemas import InstanceMemory, InstanceState
from gpustack.server.reconcile.notes import Promise, Refusal
from gpustack.server.reconcile.questions import Question


@dataclass(frozen=True, slots=True)
class Create:
    """Make ``count`` new instances of a model."""

    model_id: int
    count: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Want another number of instances of a model, for what is asked of it."""

    model_id: int
    before: int
    replicas: int
    why: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let an instance end: no new requests, those in flight are answered. One without a worker goes at once."""

    instance_id: int
    why: str
    #: Seconds that requests in flight have.
    seconds: int
    #: The instance that waits for the room it leaves.
    for_instance: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Remove an instance that drains for longer than it may; its worker, if there is one, ends what is left of it."""

    instance_id: int
    why: str


@dataclass(frozen=True, slots=True)
class Analyze:
    """Let the instance wait in ANALYZING for ``workers`` to read the model's files.

    ``request`` are those to be told to; the others read them already. ``revision`` is the commit of a hub's repository
    that other instances are held to; empty is the newest. ``message`` says why others than before are asked.
    """

    instance_id: int
    workers: tuple[int, ...]
    request: tuple[int, ...]
    revision: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Put questions to backends."""

    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Give an instance to a worker."""

    placed: Placed
    #: What the engine loads, on that worker.
    path: str
    #: Digest of the model's description that this was decided by.
    spec: str
    #: The commit of a hub's repository to load.
    revision: str = ""
    #: What was decided for the user on the way.
    note: str = ""
    #: The estimate, and what the peak that will be measured is kept by.
    memory: InstanceMemory = field(default_factory=InstanceMemory)
    #: What each of the other members loads, on its worker.
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Park:
    """Leave an instance in PENDING, or put it there, until capacity changes."""

    instance_id: int
    message: str
    #: Tells when to look again.
    refusal: Refusal
    #: An old instance of its model whose end would leave it room.
    room_of: int | None = None
    #: The room that it waits for.
    promise: Promise | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """Put an instance that has no worker in ERROR. ``tried`` names workers that need not be tried again."""

    instance_id: int
    message: str
    tried: frozenset[str]
    #: Digest of the model's description that this was decided by.
    spec: str
    #: What is wrong with GPUStack itself, for the log.
    bug: Exception | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """Put an instance back to PENDING for a wholly new attempt, off its worker if it has one."""

    instance_id: int
    message: str
    #: The worker did not take it, so others come first now.
    avoid: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Change the state of an instance that stays on its worker."""

    instance_id: int
    state: InstanceState
    message: str


@dataclass(frozen=True, slots=True)
class Again:
    """Begin the next attempt to start the members of an instance, whose last one has failed and is over."""

    instance_id: int


@dataclass(frozen=True, slots=True)
class LoseWorker:
    """Note that a worker is silent, and with it its instances."""

    worker_id: int
    message: str
    instances: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReturnWorker:
    """Note that a silent worker speaks again; its instances follow when it reports them."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class SetReady:
    """Keep the model's count of running instances."""

    model_id: int
    count: int


@dataclass(frozen=True, slots=True)
class SetCategories:
    """Keep what the model's files say it can do."""

    model_id: int
    categories: tuple[str, ...]


Action = (
    Create
    | Scale
    | Drain
    | Finish
    | Analyze
    | Ask
    | Schedule
    | Park
    | Fail
    | Restart
    | Move
    | Again
    | LoseWorker
    | ReturnWorker
    | SetReady
    | SetCategories
)
