"""Workers: machines that run engines."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from gpustack.kit.text import MOST_MEMORY, human_bytes
from gpustack.schemas.common import FromWorker, Input, Output, Record, Title

#: What says which start of a worker makes a request, so that another one with the same identity is told from it.
SESSION_HEADER = "X-GPUStack-Session"
#: What a worker can, beside what its plugins bring: a kind of names in its catalogue, which older ones lack.
ABILITIES = "abilities"
#: It runs one member of an instance that spans workers.
MEMBERS = "members"


class WorkerState(StrEnum):
    """Whether a worker can take instances. In ``maintenance`` it takes none, and those that it has move elsewhere."""

    NOT_READY = "not_ready"
    READY = "ready"
    UNREACHABLE = "unreachable"
    MAINTENANCE = "maintenance"


class CpuStatus(Output):
    """Cores, and their use in percent."""

    total: int = 0
    utilization_rate: float = 0.0


class MemoryStatus(Output):
    """Memory or swap in bytes.

    ``others`` is what of ``used`` is not our engines'; None where nobody tells whose it is, and claims stand for our use.
    """

    total: int = 0
    used: int = 0
    utilization_rate: float = 0.0
    is_unified_memory: bool = False
    others: int | None = None


class FilesystemStatus(Output):
    """One mounted file system in bytes."""

    name: str = ""
    mount_point: str = ""
    mount_from: str = ""
    total: int = 0
    used: int = 0
    free: int = 0
    available: int = 0


class GpuMemory(MemoryStatus):
    """A GPU's memory: ``used`` as the driver says, ``allocated`` by claims of instances."""

    allocated: int = 0


class GpuCore(Output):
    """A GPU's cores, and their use in percent."""

    total: int = 0
    utilization_rate: float = 0.0


class GpuProcessStatus(Output):
    """A process that uses a GPU; ``memory`` in bytes where the driver tells, ``instance_id`` of an engine of ours."""

    pid: int
    memory: int | None = None
    instance_id: int | None = None


class GpuStatus(Output):
    """One GPU of a worker."""

    uuid: str
    index: int
    vendor: str
    name: str
    type: str = ""
    driver_version: str = ""
    runtime_version: str = ""
    compute_capability: str = ""
    memory: GpuMemory = GpuMemory()
    core_utilization_rate: float = 0.0
    temperature: float = 0.0
    core: GpuCore = GpuCore()
    #: Watts: the most that it may draw, and what it draws.
    power: float = 0.0
    power_used: float = 0.0
    arch_family: str = ""
    #: The number of the physical GPU, which a slice of it (MIG) has too.
    device_index: int | None = None
    #: The uuid of the physical GPU that this one is a slice of.
    parent_uuid: str = ""
    numa_node: int | None = None
    #: Its place in the machine, widest part first; near GPUs share more of the leading parts.
    topology: list[str] = []
    #: GPUs of a worker with the same one reach each other over NVLink.
    link_group: str = ""
    #: Our engines', and of the others those with the most memory; None where the driver does not tell.
    processes: list[GpuProcessStatus] | None = None
    #: Why nothing more is started on it.
    faults: list[str] = []
    #: Errors of its memory that could not be corrected.
    memory_errors: int = 0


class ContainerEngineStatus(Output):
    """The container engine of a worker, as in ``Docker 28.2.2``; or the ``reason`` why engines cannot run in containers there."""

    name: str = Field(default="", max_length=128)
    reason: str = Field(default="", max_length=1024)


class WorkerStatus(Output):
    """What a worker measured."""

    cpu: CpuStatus = CpuStatus()
    memory: MemoryStatus = MemoryStatus()
    swap: MemoryStatus = MemoryStatus()
    filesystem: list[FilesystemStatus] = []
    os: dict[str, str] = {}
    kernel: dict[str, str] = {}
    uptime: dict[str, float] = {}
    gpu_devices: list[GpuStatus] = []
    #: None: the worker does not say, being older.
    container_engine: ContainerEngineStatus | None = None


#: GPUs of one worker, slices counted.
MOST_GPUS = 256


def _possible(status: WorkerStatus) -> WorkerStatus:
    """Refuse what no machine has, since decisions are made with these numbers."""
    _possible_memory("memory", status.memory)
    _possible_memory("swap", status.swap)
    if len(status.gpu_devices) > MOST_GPUS:
        raise ValueError(f"{len(status.gpu_devices)} GPUs; a worker has {MOST_GPUS} at most")
    indexes = [gpu.index for gpu in status.gpu_devices]
    if len(set(indexes)) < len(indexes):
        raise ValueError("two GPUs have the same index; each has one of its own")
    for gpu in status.gpu_devices:
        if not 0 <= gpu.index < 1 << 16:
            raise ValueError(f"a GPU's index is {gpu.index}; it counts from 0 to {(1 << 16) - 1}")
        _possible_memory(f"memory of GPU {gpu.index}", gpu.memory)
    return status


def _possible_memory(what: str, memory: MemoryStatus) -> None:
    for name, size in (("total", memory.total), ("used", memory.used), ("others", memory.others or 0)):
        if not 0 <= size <= MOST_MEMORY:
            raise ValueError(f"{what}: {name} is {size} bytes; it is from 0 to {human_bytes(MOST_MEMORY)}")


def _possible_reserve(reserved: dict[str, int]) -> dict[str, int]:
    for name, size in reserved.items():
        if not 0 <= size <= MOST_MEMORY:
            raise ValueError(f"{name} is {size} bytes; it is from 0 to {human_bytes(MOST_MEMORY)}")
    return reserved


#: What a worker says of itself, before it is believed. What is stored is read without this.
Measured = Annotated[WorkerStatus, AfterValidator(_possible)]


class WorkerProof(FromWorker):
    """What shows that a registration comes from who has a private key. The texts are bytes in the alphabet of URLs."""

    #: An Ed25519 key: whoever has the private one beside it is the same worker, whatever else it says.
    public_key: str = Field(min_length=43, max_length=43)
    #: What the server gave for this; no clock but the server's counts.
    challenge: str = Field(max_length=128)
    #: Over :meth:`WorkerRegistration.signed`.
    signature: str = Field(max_length=128)


class WorkerChallenge(Output):
    """What a worker signs in its registration, within ``expires_in`` seconds."""

    challenge: str
    expires_in: int


class WorkerRegistration(FromWorker):
    """What a worker says when it joins; again at each start, with the same key and ``worker_uuid``."""

    name: Title = Field(min_length=1, max_length=128)
    hostname: str = Field(default="", max_length=255)
    ip: str = Field(min_length=1, max_length=64)
    port: int = Field(default=0, ge=0, le=65535)
    #: What the server shows when it calls the worker's own port.
    door_token: str = Field(min_length=16, max_length=128)
    #: Made once by the worker and kept in its data directory: the same one is the same worker.
    worker_uuid: str = Field(min_length=8, max_length=64)
    #: Digest over the machine and the place of its data directory; another one is a copy, or has moved.
    home: str = Field(default="", max_length=64)
    #: Made up by the worker's process: the same one is the same start, so that an answer may be lost.
    start: str = Field(default="", max_length=64)
    #: Digest over what the system calls its own start; another one at the same home is a copy of the machine.
    boot: str = Field(default="", max_length=64)
    proof: WorkerProof | None = None
    version: str = Field(max_length=64)
    labels: dict[str, str] = {}
    #: Bytes of memory kept for the system: ``ram`` for the worker, ``vram`` for each GPU.
    system_reserved: Annotated[dict[str, int], AfterValidator(_possible_reserve)] = {}
    status: Measured = WorkerStatus()
    #: Names of the extensions installed there, by kind, and of what the worker itself can: ``abilities``.
    catalogue: dict[str, list[str]] = {}
    #: Installed engine versions by backend.
    installed_versions: dict[str, list[str]] = {}

    def signed(self, challenge: str) -> bytes:
        """Return what a proof's signature covers: who is where, and what opens its door."""
        said = (
            *("gpustack worker", challenge, self.worker_uuid, self.start, self.home, self.boot),
            *(self.hostname, self.ip, str(self.port), self.door_token),
        )
        return json.dumps(said, ensure_ascii=True, separators=(",", ":")).encode("ascii")


class WorkerRegistered(Output):
    """The answer to a registration: the worker's number and its own credential, which it keeps.

    ``session`` numbers the starts of this worker; it goes with every request of this start.
    """

    id: int
    name: str
    token: str
    session: int = 0


class Heartbeat(FromWorker):
    """Sign of life; with ``status`` every third time, and at once when room on GPUs was taken or came free."""

    status: Measured | None = None
    installed_versions: dict[str, list[str]] | None = None
    #: The part of the KV cache that the engines of instances use, from 0 to 1, by instance; absent where they do not say.
    kv_caches: dict[int, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]] | None = Field(
        default=None, max_length=10_000
    )


#: The labels that a worker gives itself.
OWN_LABELS = frozenset({"os", "arch", "worker-name"})


class WorkerUpdate(Input):
    """What an administrator may change about a worker; what is left out stays.

    ``labels`` take the place of those it had, but for its own: os, arch and worker-name.

    In ``maintenance`` a worker gets no new instances. Those that it has serve on until others run elsewhere.
    """

    labels: dict[str, str] | None = None
    maintenance: bool | None = None


class WorkerPublic(Record):
    """A worker."""

    name: str
    hostname: str = ""
    ip: str
    port: int = 0
    cluster_id: int
    worker_uuid: str
    version: str
    state: WorkerState
    state_message: str = ""
    maintenance: bool = False
    #: Counts the starts of the worker.
    session: int = 0
    labels: dict[str, str] = {}
    system_reserved: dict[str, int] = {}
    heartbeat_time: datetime | None = None
    status: WorkerStatus = WorkerStatus()
    catalogue: dict[str, list[str]] = {}
    installed_versions: dict[str, list[str]] = {}


class FleetPublic(Output):
    """All workers in short: how many are in each state, and what is remarkable now, a line each."""

    workers: dict[str, int]
    notices: list[str]


class GpuDevicePublic(GpuStatus):
    """A GPU with the worker it belongs to. ``id`` is ``worker:type:index``."""

    id: str
    worker_id: int
    worker_name: str
    worker_ip: str
    cluster_id: int
    labels: dict[str, Any] = {}
