"""What a worker needs to know before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.lifecycle.engine import EngineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Plain values; the directories exist."""

    server_url: str
    #: The credential that lets a worker join.
    registration_token: str
    name: str
    #: The address under which the server reaches this machine.
    advertise_ip: str
    data_dir: Path
    bin_dir: Path
    log_dir: Path
    #: Ports for engines, in order.
    service_ports: Sequence[int]
    #: Empty: find pipx.
    pipx_path: str = ""
    #: Bytes kept for the system: ``ram``, and ``vram`` of each GPU.
    system_reserved: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    limits: EngineLimits = field(default_factory=EngineLimits)
    #: Seconds between two heartbeats; every third carries what was measured.
    heartbeat: float = 10.0
    #: Seconds that engines have to end by themselves.
    grace: float = 4.0
    #: Leave engines running when the worker ends; the next one adopts them.
    keep_engines: bool = False

    @property
    def run_dir(self) -> Path:
        """Where the records of running engines are."""
        return self.data_dir / "run"

    @property
    def worker_dir(self) -> Path:
        """Where the worker keeps who it is."""
        return self.data_dir / "worker"

    def scratch(self, instance_id: int) -> Path:
        """Return the working directory of an engine."""
        return self.data_dir / "scratch" / str(instance_id)
