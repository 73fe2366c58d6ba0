"""Model instances: one running copy of a model each."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from gpustack.schemas.common import FromWorker, Output, Record


class InstanceState(StrEnum):
    """Where an instance is on its way; ``gpustack.lifecycle`` says which step may follow which."""

    PENDING = "pending"
    ANALYZING = "analyzing"
    SCHEDULED = "scheduled"
    INITIALIZING = "initializing"
    DOWNLOADING = "downloading"
    STARTING = "starting"
    RUNNING = "running"
    ERROR = "error"
    UNREACHABLE = "unreachable"


class Claim(Output):
    """Memory set aside for an instance, in bytes. ``vram`` is by the index of the GPU on its worker."""

    ram: int = 0
    vram: dict[int, int] = {}
    #: How many pieces of the model (of llama.cpp: layers) each GPU gets; empty where it is spread evenly.
    pieces: dict[int, int] = {}


class InstanceMemory(Output):
    """What an instance was estimated to take, and the most that it took so far, in bytes; 0 is not known.

    ``computed_resource_claim`` is the estimate as earlier starts of the same kind correct it.
    """

    estimated_ram: int = 0
    #: Of all its GPUs together.
    estimated_vram: int = 0
    #: The part of ``estimated_ram`` that is pages of mapped files; of the pages measured no more are counted.
    mapped: int = 0
    peak_ram: int = 0
    peak_vram: int = 0
    #: What its peaks are remembered by, besides engine and version: the model's architecture and a digest of all that
    #: an estimate depends on.
    architecture: str = ""
    arguments: str = ""


class MeasuredPeak(FromWorker):
    """The most that an instance took since its engine started, in bytes; ``vram`` on all its GPUs together."""

    ram: int = Field(default=0, ge=0, le=1 << 60)
    vram: int = Field(default=0, ge=0, le=1 << 60)


class MemberState(StrEnum):
    """Where one member of an instance over several workers is; ``gpustack.lifecycle.group`` says what follows what."""

    #: Its worker has said nothing of it yet.
    ASSIGNED = "assigned"
    #: Its engine and files come.
    PREPARING = "preparing"
    #: It holds its ports and waits for the others.
    PREPARED = "prepared"
    #: It reaches all others.
    CHECKED = "checked"
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    #: Its process is gone, and what it held is free.
    ENDED = "ended"
    #: Its worker is silent.
    UNREACHABLE = "unreachable"


class MemberDevice(FromWorker):
    """A GPU of a member, as far as other members need to know it."""

    index: int
    uuid: str = Field(default="", max_length=128)
    vendor: str = Field(default="", max_length=64)
    name: str = Field(default="", max_length=255)
    type: str = Field(default="", max_length=64)
    memory_total: int = 0


class InstanceMember(Output):
    """One process of an instance that spans workers. Number 0 leads, and is the one that answers requests."""

    number: int
    worker_id: int
    worker_name: str = ""
    worker_ip: str = ""
    computed_resource_claim: Claim = Claim()
    gpu_indexes: list[int] = []
    resolved_path: str = ""
    state: MemberState = MemberState.ASSIGNED
    #: Why it is in this state.
    state_message: str = ""
    #: Where the others reach it, as its worker says: an address, its interface, and ports for the members alone.
    host: str = ""
    interface: str = ""
    ports: list[int] = []
    devices: list[MemberDevice] = []
    pid: int | None = None
    #: It failed in a way that trying again cannot help.
    final: bool = False


class GroupOrders(Output):
    """What the members of one instance share and nobody else is to know."""

    #: A secret of this attempt.
    token: str
    #: The ports of the first Ray head on a host: ``gcs``, ``client`` and ``dashboard``.
    ray_ports: dict[str, int] = {}


class MemberReport(FromWorker):
    """What a worker says of the member that it has; always the whole."""

    number: int = Field(ge=0, le=1023)
    #: Which attempt of the instance this is about.
    attempt: int = Field(ge=1)
    state: MemberState
    final: bool = False
    host: str = Field(default="", max_length=255)
    interface: str = Field(default="", max_length=64)
    ports: list[int] = Field(default_factory=list, max_length=1024)
    devices: list[MemberDevice] = Field(default_factory=list, max_length=64)


class ModelInstancePublic(Record):
    """One copy of a model: on one worker, or with a member on each of several."""

    name: str
    model_id: int
    model_name: str
    cluster_id: int
    state: InstanceState
    #: Why it is in this state, and in ERROR what to do; several lines when an engine's last words are in it.
    state_message: str = ""
    #: When it entered the state.
    state_since: datetime
    worker_id: int | None = None
    worker_name: str = ""
    worker_ip: str = ""
    pid: int | None = None
    port: int | None = None
    ports: list[int] = []
    #: What the engine loads: an absolute path on the worker.
    resolved_path: str = ""
    backend: str = ""
    backend_version: str = ""
    computed_resource_claim: Claim = Claim()
    memory: InstanceMemory = InstanceMemory()
    gpu_indexes: list[int] = []
    #: The commit of the model's repository that it loads; empty for files without one.
    resolved_revision: str = ""
    #: Percent of the files that are here, while it is DOWNLOADING.
    download_progress: float = 0.0
    #: Since when it takes no new requests and ends once those in flight are answered; None: it takes them.
    draining_since: datetime | None = None
    #: How long its requests in flight have then, at most: its model may be gone by that time.
    drain_seconds: int = 0
    #: Which description of its model it was placed by, or failed by; see the model's field of this name.
    spec_digest: str = ""
    restart_count: int = 0
    last_restart_time: datetime | None = None
    #: Of an instance that spans workers, the leader first; ``worker_id`` and its like are the leader's.
    members: list[InstanceMember] = []
    #: Counts the attempts to start its members together.
    attempt: int = 0
    #: Those in a row that failed.
    failed_attempts: int = 0

    def member_on(self, worker_id: int) -> InstanceMember | None:
        """Return the member on a worker; None when there is none, or the instance spans no workers."""
        return next((each for each in self.members if each.worker_id == worker_id), None)

    @property
    def worker_ids(self) -> tuple[int, ...]:
        """The workers that it is on, the leader's first; none when it has no place."""
        if self.members:
            return tuple(each.worker_id for each in self.members)
        return () if self.worker_id is None else (self.worker_id,)


class InstanceReport(FromWorker):
    """What a worker says of an instance it runs. Absent fields stay as they are."""

    state: InstanceState
    state_message: str = Field(default="", max_length=16384)
    pid: int | None = None
    port: int | None = None
    #: What the engine loads, once that is known.
    resolved_path: str | None = Field(default=None, max_length=4096)
    download_progress: float | None = Field(default=None, ge=0, le=100)
    #: True when the engine ended and is started again.
    restarted: bool = False
    #: How often it was, this time included, so that a report that comes twice counts once; None: one time more.
    restart_count: int | None = Field(default=None, ge=1, le=1_000_000_000)
    #: The error that this report follows, when the report of that could not be sent before.
    missed_error: str | None = Field(default=None, max_length=16384)
    #: What it took so far, when that has grown.
    peak: MeasuredPeak | None = None
    #: True when a draining instance has ended for good.
    ended: bool = False
    #: Of an instance that spans workers: which member this is about, whose ``state`` counts.
    member: MemberReport | None = None


class InstanceEventPublic(Record):
    """One thing that happened to an instance: it was made, changed its state, was restarted, drained, or removed."""

    model_id: int
    model_name: str
    instance_id: int
    instance_name: str
    worker_name: str = ""
    #: ``created``, ``restarted``, ``draining``, ``removed``, or the state that it entered.
    what: str
    #: Why; several lines when an engine's last words are in it.
    message: str = ""
    restart_count: int = 0
