"""Models: what users want served."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from pydantic import Field, field_validator, model_validator

from gpustack.schemas.common import Input, Name, Record, Title

_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class Source(StrEnum):
    """Where a model's files come from."""

    LOCAL_PATH = "local_path"


class PlacementStrategy(StrEnum):
    """Which of several fitting workers is better: the emptier or the fuller."""

    SPREAD = "spread"
    BINPACK = "binpack"


class _Spec(Input):
    description: str = Field(default="", max_length=4096)
    meta: dict[str, Any] = Field(default_factory=dict)
    source: Source = Source.LOCAL_PATH
    #: Absolute path of a file or directory on the worker.
    local_path: str = Field(default="", max_length=4096)
    replicas: int = Field(default=1, ge=0, le=1000)
    placement_strategy: PlacementStrategy = PlacementStrategy.SPREAD
    #: Labels that a worker must carry.
    worker_selector: dict[str, str] = Field(default_factory=dict)
    #: Name of the backend; empty lets GPUStack choose.
    backend: Title = Field(default="", max_length=64)
    #: Version of the engine; empty is the backend's default.
    backend_version: str = Field(default="", max_length=64, pattern=r"^([0-9A-Za-z][0-9A-Za-z.+_-]*)?$")
    #: Engine parameters, one command-line item or ``--name=value`` each.
    backend_parameters: list[str] = Field(default_factory=list, max_length=200)
    #: Environment variables of the engine.
    env: dict[str, str] = Field(default_factory=dict)
    #: Start the engine again when it fails.
    restart_on_error: bool = True
    #: The cluster to run in; none is the default cluster.
    cluster_id: int | None = None

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _ENV_NAME.match(name) or "\0" in value:
                raise ValueError(f"{name!r} is not an environment variable")
        return env

    @model_validator(mode="after")
    def _source_is_complete(self) -> _Spec:
        if not self.local_path:
            raise ValueError(
                "local_path is missing: the absolute path of a model file or directory on the worker"
            )
        if not self.local_path.startswith("/") and not re.match(r"^[A-Za-z]:[\\/]", self.local_path):
            raise ValueError(
                f"local_path {self.local_path!r} is not absolute; give the whole path on the worker"
            )
        if "\0" in self.local_path:
            raise ValueError("local_path has a NUL character")
        return self


class ModelCreate(_Spec):
    """A model to serve."""

    #: The name that requests ask for; unique.
    name: Name


class ModelUpdate(_Spec):
    """The whole new description of a model. The name stays."""

    name: Name | None = None


class ModelPublic(Record):
    """A model, with what is known about it by now."""

    name: str
    description: str = ""
    meta: dict[str, Any] = {}
    source: Source = Source.LOCAL_PATH
    local_path: str = ""
    replicas: int = 1
    #: Instances that answer now.
    ready_replicas: int = 0
    #: What the model can do, read from its files; empty until they were read.
    categories: list[str] = []
    placement_strategy: PlacementStrategy = PlacementStrategy.SPREAD
    worker_selector: dict[str, str] = {}
    backend: str = ""
    backend_version: str = ""
    backend_parameters: list[str] = []
    env: dict[str, str] = {}
    restart_on_error: bool = True
    cluster_id: int
    #: Digest over what an engine is started with; an instance with another one is out of date.
    spec_digest: str = ""
