"""Engines on workers: each environment that is there or asked for, how much it takes, and how far it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict, Field, field_validator

from gpustack.schemas.common import FromWorker, Input, Output, Record, Title
from gpustack.schemas.packages import normal_packages

_VERSION = r"^([0-9A-Za-z][0-9A-Za-z.+_-]*)?$"


class EngineState(StrEnum):
    """Where an environment is on its way."""

    #: Asked for; the worker has not begun.
    PENDING = "pending"
    INSTALLING = "installing"
    INSTALLED = "installed"
    #: To be taken away.
    REMOVING = "removing"
    #: It cannot be installed, and is not tried again until somebody asks again.
    ERROR = "error"


def engine_key(backend: str, version: str, packages: Iterable[str]) -> str:
    """Return the digest that one environment has on every worker."""
    return hashlib.sha256("\0".join((backend, version, *packages)).encode()).hexdigest()


class EngineName(Output):
    """What an environment is made from: a backend's version, and packages of a deployment's in one spelling."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    backend: str
    version: str
    packages: list[str] = []

    @property
    def title(self) -> str:
        """The environment as people write it."""
        extras = f" with {', '.join(self.packages)}" if self.packages else ""
        return f"{self.backend}=={self.version}{extras}"


class WorkerEnginePublic(Record):
    """One environment on one worker."""

    worker_id: int
    backend: str
    version: str
    #: Packages that a deployment added; the environment is another one without them.
    packages: list[str] = []
    #: Digest of the three: equal environments have equal keys.
    engine_key: str
    state: EngineState
    #: What is being done, or why it cannot.
    state_message: str = ""
    #: Grows with every request to install or remove it; a report answers one.
    request: int = 0
    #: Bytes on the worker's disk; 0 is unknown.
    disk: int = 0
    #: When an engine was started from it last, or it was installed, by the server's clock.
    last_used_at: datetime | None = None

    @property
    def name(self) -> EngineName:
        """What it is made from."""
        return EngineName(backend=self.backend, version=self.version, packages=self.packages)


class WorkerEngineCreate(Input):
    """An environment to be installed on a worker, or on all that have the backend."""

    backend: Title = Field(min_length=1, max_length=64)
    #: Empty is the backend's default version.
    version: str = Field(default="", max_length=64, pattern=_VERSION)
    packages: list[str] = Field(default_factory=list)
    #: Null is every worker that has the backend.
    worker_id: int | None = None

    @field_validator("packages")
    @classmethod
    def _one_spelling(cls, packages: list[str]) -> list[str]:
        return list(normal_packages(packages))


class WorkerEngineReport(FromWorker):
    """How far a worker is with a request. ``gone``: there is nothing of it any more."""

    request: int
    state: EngineState
    state_message: str = Field(default="", max_length=4096)
    gone: bool = False
    disk: int = Field(default=0, ge=0)


class EngineHeld(FromWorker):
    """An environment that a worker has and has proven."""

    backend: str = Field(max_length=64)
    version: str = Field(max_length=64)
    packages: list[str] = Field(default_factory=list, max_length=200)
    disk: int = Field(default=0, ge=0)
    #: Seconds since it was used last, so that no clock of a worker's counts.
    unused_seconds: float = Field(default=0.0, ge=0, le=10**10)

    @property
    def key(self) -> str:
        """Its key."""
        return engine_key(self.backend, self.version, self.packages)


class WorkerEngineInventory(FromWorker):
    """All environments that a worker has."""

    engines: list[EngineHeld] = Field(max_length=2000)


class EnginesWanted(Output):
    """What models run from, or would: it is not taken away though it be unused."""

    items: list[EngineName]
