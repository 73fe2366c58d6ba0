"""Model instances: one running copy of a model each."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from gpustack.schemas.common import Input, Output, Record


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


class ModelInstancePublic(Record):
    """One copy of a model on one worker."""

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
    gpu_indexes: list[int] = []
    #: Which description of its model it was placed by, or failed by; see the model's field of this name.
    spec_digest: str = ""
    restart_count: int = 0
    last_restart_time: datetime | None = None


class InstanceReport(Input):
    """What a worker says of an instance it runs. Absent fields stay as they are."""

    state: InstanceState
    state_message: str = Field(default="", max_length=16384)
    pid: int | None = None
    port: int | None = None
    #: True when the engine ended and is started again.
    restarted: bool = False
