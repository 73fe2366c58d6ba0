"""Models: what users want served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Protocol

from pydantic import Field, field_validator, model_validator

from gpustack.kit.errors import InvalidInput
from gpustack.kit.paths import stays_below
from gpustack.schemas.backends import IMAGE_NAME, BackendVersionConfig, command_line, variables
from gpustack.schemas.common import Input, Name, Record, Title
from gpustack.schemas.gpu_selection import GpuSelector, GpuSelectorPatch
from gpustack.schemas.packages import DEPS_VARIABLE, all_packages, normal_packages, packages_of_variable
from gpustack.schemas.serving import (
    MOST_REPLICAS,
    Autoscaling,
    AutoscalingPatch,
    ModelQueue,
    ModelQueuePatch,
    ModelTimeouts,
    ModelTimeoutsPatch,
    bounds,
)

_REPO_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$")


class Source(StrEnum):
    """Where a model's files come from."""

    LOCAL_PATH = "local_path"
    HUGGINGFACE = "huggingface"
    #: Files that a plugin carries.
    BUNDLED = "bundled"


class SourceFields(Protocol):
    """What says where files come from: of a model, and of a model file."""

    source: Source
    local_path: str
    huggingface_repo_id: str
    huggingface_filename: str
    huggingface_revision: str
    bundled_name: str


def source_key(source: SourceFields) -> str:
    """Return the digest over the fields of a source: equal sources have equal keys."""
    parts = [source.source.value, source.local_path]
    if source.source is Source.HUGGINGFACE:
        parts = [
            source.source.value,
            source.huggingface_repo_id,
            source.huggingface_filename,
            source.huggingface_revision,
        ]
    elif source.source is Source.BUNDLED:
        parts = [source.source.value, source.bundled_name]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def source_name(source: SourceFields) -> str:
    """Return the source in the words a person would use for it."""
    if source.source is Source.LOCAL_PATH:
        return source.local_path
    if source.source is Source.BUNDLED:
        return f"bundled:{source.bundled_name}"
    name = source.huggingface_repo_id
    if source.huggingface_revision:
        name += f"@{source.huggingface_revision}"
    return f"{name}:{source.huggingface_filename}" if source.huggingface_filename else name


class PlacementStrategy(StrEnum):
    """Which of several fitting workers is better: the emptier or the fuller."""

    SPREAD = "spread"
    BINPACK = "binpack"


class Rollout(Input):
    """How instances are exchanged for new ones, and how they end."""

    #: Instances that may exist beyond ``replicas`` while a change is rolled out.
    max_surge: int = Field(default=1, ge=0, le=1000)
    #: Instances that may be missing meanwhile.
    max_unavailable: int = Field(default=0, ge=0, le=1000)
    #: Seconds that requests in flight on an instance have before it ends; new ones go elsewhere.
    drain_seconds: int = Field(default=120, ge=0, le=86400)

    @model_validator(mode="after")
    def _can_move(self) -> Rollout:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError("max_surge and max_unavailable are both 0: then nothing could ever be exchanged")
        return self


class _Spec(Input):
    description: str = Field(default="", max_length=4096)
    meta: dict[str, Any] = Field(default_factory=dict)
    source: Source = Source.LOCAL_PATH
    #: Absolute path of a file or directory on the worker.
    local_path: str = Field(default="", max_length=4096)
    #: ``organisation/name`` on the hub.
    huggingface_repo_id: str = Field(default="", max_length=200)
    #: Which files of the repository, as a pattern such as ``*Q4_K_M*.gguf``; empty is what the model needs.
    huggingface_filename: str = Field(default="", max_length=1024)
    #: Branch, tag or commit; empty is the repository's main branch.
    huggingface_revision: str = Field(default="", max_length=255)
    #: Name of a model that a plugin carries.
    bundled_name: str = Field(default="", max_length=64)
    replicas: int = Field(default=1, ge=0, le=MOST_REPLICAS)
    #: With these, ``replicas`` follows what is asked of the model, between both; 0 lets the last one end when it is idle.
    min_replicas: int | None = Field(default=None, ge=0, le=MOST_REPLICAS)
    max_replicas: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    #: Whose instances are placed first, and may take the place of others: the higher one's.
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    timeouts: ModelTimeouts = Field(default_factory=ModelTimeouts)
    queue: ModelQueue = Field(default_factory=ModelQueue)
    placement_strategy: PlacementStrategy = PlacementStrategy.SPREAD
    #: Labels that a worker must carry.
    worker_selector: dict[str, str] = Field(default_factory=dict)
    #: GPUs chosen by hand; null lets GPUStack choose.
    gpu_selector: GpuSelector | None = None
    #: Where it fits on no single worker, an instance may be divided over several, if its backend can do that.
    distributed_inference_across_workers: bool = True
    #: Name of the backend; empty lets GPUStack choose.
    backend: Title = Field(default="", max_length=64)
    #: Version of the engine; empty is the backend's default.
    backend_version: str = Field(default="", max_length=64, pattern=r"^([0-9A-Za-z][0-9A-Za-z.+_-]*)?$")
    #: Engine parameters, one command-line item or ``--name=value`` each.
    backend_parameters: list[str] = Field(default_factory=list, max_length=200)
    #: The image of the engine's container, in place of the backend's.
    image_name: Title = Field(default="", max_length=512, pattern=IMAGE_NAME)
    #: The engine's command line, in place of the backend's; words in double braces are filled in.
    run_command: str = Field(default="", max_length=8192)
    #: Packages beside the engine, as pip's requirements name them: the model gets an environment of its own with them.
    backend_packages: list[str] = Field(default_factory=list)
    #: Environment variables of the engine. ``GPUSTACK_BACKEND_DEPS`` names packages, too: ``a==1,b>=2``.
    env: dict[str, str] = Field(default_factory=dict)
    #: Start the engine again when it fails.
    restart_on_error: bool = True
    rollout: Rollout = Field(default_factory=Rollout)
    #: The cluster to run in; none is the default cluster.
    cluster_id: int | None = None

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        try:
            packages_of_variable(env.get(DEPS_VARIABLE, ""))
        except ValueError as error:
            raise ValueError(f"{DEPS_VARIABLE}: {error}") from None
        return variables(env)

    @field_validator("run_command")
    @classmethod
    def _can_be_filled(cls, text: str) -> str:
        return command_line(text)

    @model_validator(mode="after")
    def _command_has_a_backend(self) -> _Spec:
        for name in ("image_name", "run_command"):
            if getattr(self, name) and not self.backend:
                raise ValueError(f"{name} goes with a backend that is named, such as custom")
        return self

    @field_validator("backend_packages")
    @classmethod
    def _packages(cls, packages: list[str]) -> list[str]:
        normal_packages(packages)
        return packages

    @model_validator(mode="after")
    def _replicas_are_within(self) -> _Spec:
        limits = bounds(self.replicas, self.min_replicas, self.max_replicas)
        if limits is None:
            return self
        self.min_replicas, self.max_replicas = least, most = limits
        if least == 0 and self.queue.requests == 0:
            raise ValueError(
                "min_replicas 0 needs requests that wait for a start, and queue.requests 0 lets none"
            )
        if "replicas" not in self.model_fields_set:
            # The first requests are not to wait, whatever happens later.
            self.replicas = min(max(1, least), most)
        elif not least <= self.replicas <= most:
            raise ValueError(
                f"replicas {self.replicas} is not between min_replicas {least} and max_replicas {most}"
            )
        return self

    @model_validator(mode="after")
    def _source_is_complete(self) -> _Spec:
        _CHECKS[self.source](self)
        return self


def _only_of(spec: _Spec, source: Source) -> None:
    """Refuse what belongs to another source: whoever wrote it expects something else."""
    if source is not Source.HUGGINGFACE and (
        spec.huggingface_repo_id or spec.huggingface_filename or spec.huggingface_revision
    ):
        raise ValueError('huggingface_… fields go with source "huggingface"')
    if source is not Source.LOCAL_PATH and spec.local_path:
        raise ValueError('local_path goes with source "local_path"')
    if source is not Source.BUNDLED and spec.bundled_name:
        raise ValueError('bundled_name goes with source "bundled"')


def _check_local(spec: _Spec) -> None:
    _only_of(spec, Source.LOCAL_PATH)
    if not spec.local_path:
        raise ValueError(
            "local_path is missing: the absolute path of a model file or directory on the worker"
        )
    if not spec.local_path.startswith("/") and not re.match(r"^[A-Za-z]:[\\/]", spec.local_path):
        raise ValueError(f"local_path {spec.local_path!r} is not absolute; give the whole path on the worker")
    if "\0" in spec.local_path:
        raise ValueError("local_path has a NUL character")


def _check_bundled(spec: _Spec) -> None:
    _only_of(spec, Source.BUNDLED)
    if not spec.bundled_name:
        raise ValueError("bundled_name is missing: the name of a model of the catalog, such as demo")


def _check_hub(spec: _Spec) -> None:
    _only_of(spec, Source.HUGGINGFACE)
    if not spec.huggingface_repo_id:
        raise ValueError("huggingface_repo_id is missing: organisation/name, as on the hub")
    if not _REPO_ID.fullmatch(spec.huggingface_repo_id):
        raise ValueError(f"huggingface_repo_id {spec.huggingface_repo_id!r} is not organisation/name")
    pattern = spec.huggingface_filename
    if pattern.startswith("/") or "\0" in pattern or ".." in pattern.split("/"):
        raise ValueError(f"huggingface_filename {pattern!r} leaves the repository")
    revision = spec.huggingface_revision
    if revision and (any(c.isspace() for c in revision) or not stays_below(revision)):
        raise ValueError(f"huggingface_revision {revision!r} is no branch, tag or commit")


_CHECKS: dict[Source, Callable[[_Spec], None]] = {
    Source.LOCAL_PATH: _check_local,
    Source.HUGGINGFACE: _check_hub,
    Source.BUNDLED: _check_bundled,
}


class ModelCreate(_Spec):
    """A model to serve."""

    #: The name that requests ask for; unique.
    name: Name
    #: Make a route of this name that leads to the model; without one, requests reach it by other routes only.
    enable_model_route: bool = True


class ModelUpdate(_Spec):
    """The whole new description of a model. The name stays."""

    name: Name | None = None


class RolloutPatch(Input):
    """What is to change of a :class:`Rollout`."""

    max_surge: int | None = None
    max_unavailable: int | None = None
    drain_seconds: int | None = None


class ModelPatch(Input):
    """What is to change of a model, as a JSON merge patch: what is absent stays, null stands for the default.

    Objects such as ``env`` are merged name by name; lists are replaced.
    """

    name: str | None = None
    description: str | None = None
    meta: dict[str, Any] | None = None
    source: Source | None = None
    local_path: str | None = None
    huggingface_repo_id: str | None = None
    huggingface_filename: str | None = None
    huggingface_revision: str | None = None
    bundled_name: str | None = None
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling: AutoscalingPatch | None = None
    priority: int | None = None
    timeouts: ModelTimeoutsPatch | None = None
    queue: ModelQueuePatch | None = None
    placement_strategy: PlacementStrategy | None = None
    worker_selector: dict[str, str | None] | None = None
    gpu_selector: GpuSelectorPatch | None = None
    distributed_inference_across_workers: bool | None = None
    backend: str | None = None
    backend_version: str | None = None
    backend_parameters: list[str] | None = None
    image_name: str | None = None
    run_command: str | None = None
    backend_packages: list[str] | None = None
    env: dict[str, str | None] | None = None
    restart_on_error: bool | None = None
    rollout: RolloutPatch | None = None
    cluster_id: int | None = None

    def applied_to(self, model: ModelPublic) -> ModelUpdate:
        """Return the whole new description. Raises ValidationError when a model cannot be so."""
        before = model.model_dump(mode="json", include=set(ModelUpdate.model_fields))
        merged = _merged(before, self.model_dump(mode="json", exclude_unset=True))
        if "replicas" not in self.model_fields_set:
            merged["replicas"] = _within(merged)
        return ModelUpdate.model_validate(merged)


def _within(described: dict[str, Any]) -> Any:
    """Return the replicas that nobody named, moved to between bounds that may be new."""
    replicas, least, most = (described.get(name) for name in ("replicas", "min_replicas", "max_replicas"))
    if least is not None and least > replicas:
        replicas = least
    return min(replicas, most) if most is not None else replicas


def _merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Apply a merge patch, as RFC 7386 has it."""
    new = {name: value for name, value in old.items() if name not in patch}
    for name, value in patch.items():
        if isinstance(value, dict):
            inner = old.get(name)
            new[name] = _merged(inner if isinstance(inner, dict) else {}, value)
        elif value is not None:
            new[name] = value
    return new


class ModelPublic(Record):
    """A model, with what is known about it by now."""

    name: str
    description: str = ""
    meta: dict[str, Any] = {}
    source: Source = Source.LOCAL_PATH
    local_path: str = ""
    huggingface_repo_id: str = ""
    huggingface_filename: str = ""
    huggingface_revision: str = ""
    bundled_name: str = ""
    #: Instances that are wanted now.
    replicas: int = 1
    #: Between which numbers that follows what is asked of the model; null leaves it to people.
    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling: Autoscaling = Autoscaling()
    priority: int = 0
    timeouts: ModelTimeouts = ModelTimeouts()
    queue: ModelQueue = ModelQueue()
    #: Instances that answer now.
    ready_replicas: int = 0
    #: What the model can do, read from its files; empty until they were read.
    categories: list[str] = []
    placement_strategy: PlacementStrategy = PlacementStrategy.SPREAD
    worker_selector: dict[str, str] = {}
    gpu_selector: GpuSelector | None = None
    distributed_inference_across_workers: bool = True
    backend: str = ""
    backend_version: str = ""
    backend_parameters: list[str] = []
    image_name: str = ""
    run_command: str = ""
    backend_packages: list[str] = []
    env: dict[str, str] = {}
    restart_on_error: bool = True
    rollout: Rollout = Rollout()
    cluster_id: int
    #: Digest over what an engine is started with; an instance with another one is out of date.
    spec_digest: str = ""

    def extra_packages(self, besides: Iterable[str] = ()) -> tuple[str, ...]:
        """Return what is wanted in the engine's environment, by field, variable, or ``besides``; sorted, in one spelling.

        Raises InvalidInput for what was described before this was looked at.
        """
        try:
            return all_packages((*besides, *self.backend_packages), self.env)
        except ValueError as error:
            raise InvalidInput(f"packages of {self.name}: {error}") from None

    @property
    def scaled_between(self) -> tuple[int, int] | None:
        """The bounds of ``replicas``, when it follows what is asked of the model."""
        return bounds(self.replicas, self.min_replicas, self.max_replicas)

    @property
    def sleeps(self) -> bool:
        """Whether the model runs nowhere while nobody asks for it, and starts when somebody does."""
        limits = self.scaled_between
        return limits is not None and limits[0] == 0


class ModelForWorker(ModelPublic):
    """A model as one of its instances is to be run: what its backend's row says is joined to what the model says.

    ``backend_parameters`` begin with those of the row, in its format. An older server says nothing of the rest, which leaves everything
    to the plugin that is called as the instance's backend.
    """

    #: The plugin whose backend serves it; empty is the one called as the instance's backend.
    served_by: str = ""
    config: BackendVersionConfig = BackendVersionConfig()
    #: The path whose answer tells that the engine is ready; empty is the backend's own.
    health_check_path: str = ""
    #: Why it cannot be run at all, since its backend was changed; empty when nothing is in the way.
    trouble: str = ""
