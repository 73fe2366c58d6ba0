"""What a running engine is to whoever drives it, whether it is a process or a container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gpustack.plugin import DeviceRequest, LaunchPlan
from gpustack.worker.ports import Lease
from gpustack.worker.runners.records import CONTAINER, EngineRecord


class Engine(Protocol):
    """A running engine; see :func:`start` and :func:`adopt`."""

    @property
    def record(self) -> EngineRecord:
        """What is written down about it."""

    @property
    def pid(self) -> int:
        """Its first process; 0 where that cannot be seen from here."""

    @property
    def what(self) -> str:
        """What runs, as in ``process 4711``."""

    @property
    def log_path(self) -> Path:
        """The file that holds its log."""

    def running_for(self) -> float:
        """Return the seconds since it started."""

    async def wait(self) -> str:
        """Return when it has ended, with how, as the end of a sentence: ``exited with status 1 after 0.3 s``."""

    def tail(self, *, count: int = 15) -> str:
        """Return the last lines of its log. Reads a file."""

    async def end(self, *, grace: float) -> str:
        """End it with everything it started: politely first, after ``grace`` seconds for good.

        Returns a line for what is left all the same, "" for nothing; its record goes once all is gone.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a container is made of, besides the environment."""

    #: With its registry.
    image: str
    #: What is run; empty is the image's own entry point.
    entrypoint: tuple[str, ...] = ()
    #: What the entry point is given.
    arguments: tuple[str, ...] = ()
    #: Paths on this machine that it reads, by the path at which it sees them.
    reads: Mapping[str, str] = field(default_factory=dict)
    #: What the container engine is asked for, and device files.
    requests: tuple[DeviceRequest, ...] = ()
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start, and for whom."""

    instance_id: int
    instance_name: str
    plan: LaunchPlan
    lease: Lease
    log_path: Path
    #: Its working directory, when the plan names none; made when it is missing.
    scratch: Path
    #: Environments over the plan's own; a later one wins.
    env: tuple[Mapping[str, str], ...] = ()
    #: None runs a process.
    container: Container | None = None
    #: Bytes of memory beyond which the system ends it; 0 sets no limit.
    memory_limit: int = 0
    #: See :class:`~gpustack.worker.runners.records.EngineRecord`.
    attempt: int = 0
    #: A folder for it alone, made before it starts and removed once it has ended; see the record as well.
    folder: str = ""


async def start(run_dir: Path, launch: Launch) -> Engine:
    """Start the engine. It runs when this returns, but need not answer yet.

    When the caller is cancelled meanwhile, that takes effect once the engine and its record are there.
    Raises GPUStackError with one line when it cannot be started, and InvalidInput where trying again cannot help.
    """
    if launch.container is not None:
        from gpustack.worker.runners.container import ContainerEngine

        return await ContainerEngine.start(run_dir, launch, launch.container)
    from gpustack.worker.runners.process import EngineProcess

    return await EngineProcess.start(run_dir, launch)


async def adopt(run_dir: Path, record: EngineRecord) -> Engine | None:
    """Return the engine that ``record`` tells of when it still runs, else None.

    Raises GPUStackError when that cannot be found out now.
    """
    if record.runner == CONTAINER:
        from gpustack.worker.runners.container import ContainerEngine

        return await ContainerEngine.adopt(run_dir, record)
    from gpustack.worker.runners.process import EngineProcess

    return await EngineProcess.adopt(run_dir, record)
