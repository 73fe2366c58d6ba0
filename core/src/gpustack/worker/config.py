"""What a worker needs to know before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.kit.live import Live
from gpustack.lifecycle.engine import EngineLimits
from gpustack.settings.resources import Resources
from gpustack.worker.artifacts.hub import HubConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Plain values; the directories exist."""

    server_url: str
    #: The credential that lets a worker join; may be empty for one that has joined before.
    registration_token: str
    name: str
    #: The address under which the server reaches this machine.
    advertise_ip: str
    #: The network interface by which engines talk to those of other workers; empty leaves it to them.
    interface: str = ""
    data_dir: Path
    bin_dir: Path
    log_dir: Path
    #: Ports for engines, in order.
    service_ports: Sequence[int]
    #: Ports for what members of instances over several workers say to each other.
    group_ports: Sequence[int] = ()
    #: Ports of the first Ray node on this machine, by the names of :data:`gpustack.worker.runners.ray.NODE`.
    ray_ports: Mapping[str, int] = field(default_factory=dict)
    #: The port of the door before this worker, where the server reaches it; 0: there is none, its own port is the one.
    door_port: int = 0
    #: Empty: find pipx.
    pipx_path: str = ""
    #: The server that engines' archives are fetched from; empty: where their URLs say.
    tools_url: str = ""
    #: The registry of images that are named without one.
    container_registry: str = "docker.io"
    #: Seconds after which an engine's environment that nothing uses or wants is removed; 0 is never.
    unused_engines: float = 30 * 86_400.0
    #: Where models come from; None keeps the hub's cache below the data directory.
    hub: HubConfig | None = None
    #: The hub's token where it may be exchanged while the worker runs; that of ``hub`` does not count then.
    hub_token: Live[str] | None = field(default=None, repr=False)
    #: Bytes kept for the system: ``ram``, and ``vram`` of each GPU.
    system_reserved: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    #: What the machine has where that is not to be detected.
    resources: Resources = field(default_factory=Resources)
    limits: EngineLimits = field(default_factory=EngineLimits)
    #: Seconds between two heartbeats; every third carries what was measured.
    heartbeat: float = 10.0
    #: Seconds between two looks at what engines take.
    measuring: float = 10.0
    #: The server is another GPUStack's: without it there is nothing to do here. A worker that is refused there for
    #: good ends with a line, instead of asking again and again, and it may turn out to be a copy of another one.
    remote: bool = False
    #: Seconds after which a worker that has this one's identity elsewhere is another one for good.
    conflict_patience: float = 45.0
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

    @property
    def hub_config(self) -> HubConfig:
        """Return where the hub and its cache are."""
        return self.hub or HubConfig(cache_dir=self.data_dir / "cache" / "huggingface")

    def scratch(self, instance_id: int) -> Path:
        """Return the working directory of an engine."""
        return self.data_dir / "scratch" / str(instance_id)
