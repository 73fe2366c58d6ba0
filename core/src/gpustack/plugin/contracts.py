"""What each kind of extension promises.

Methods that are plain functions are pure: they look at nothing but their arguments, and may be slow, since
GPUStack calls them in a thread with a time limit and keeps their answers. Coroutines do I/O and must not block.
A method that cannot do its work raises :class:`~gpustack.plugin.errors.Refused` (never works) or
:class:`~gpustack.plugin.errors.TryAgain` (later); anything else counts as a defect of the plugin, is logged
with its name, and reaches the user as one line.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

from gpustack.plugin.values import (
    Arrangement,
    Artifact,
    ContainerImage,
    DeviceExposure,
    EstimateRequest,
    GpuDevice,
    GpuUsage,
    LaunchPlan,
    LaunchRequest,
    ModelCard,
    ModelFacts,
    Platform,
    Preference,
    ResourceClaim,
    Suggestion,
    SystemReading,
    Verdict,
)


class NoSettings(BaseModel):
    """The settings of an extension that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What GPUStack lends to an extension: its logger, and where it may keep files."""

    log: logging.Logger
    data_dir: Path
    bin_dir: Path


class Extension(Generic[S]):
    """The root of all extensions. An async context manager: its lifetime is that of the process using it.

    ``__init__`` does no I/O and starts nothing; that belongs in ``__aenter__``.
    """

    #: What users call it: lower case, unique among extensions of its kind.
    name: ClassVar[str]
    #: The pydantic model of its own settings; :class:`NoSettings` when there are none. Each field is an option of
    #: ``gpustack start``: with an :class:`Option` beside its type it says how it is called and what it does.
    settings_type: ClassVar[type[BaseModel]]

    def __init__(self, settings: S, host: Host) -> None:
        self.settings = settings
        self.host = host

    async def __aenter__(self) -> Self:
        """Open what the extension needs while it is used."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close it again; also called when start-up of something else failed."""


class InferenceBackend(Extension[S], ABC):
    """An inference engine: which models it serves, what to install, and what to run.

    Only a description: the worker downloads, starts, watches and ends. One object serves every instance.
    """

    #: The version used when a model names none.
    default_version: ClassVar[str]

    @abstractmethod
    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Tell whether this engine can serve ``model`` on ``devices`` (empty: a machine without GPUs).

        Called with a model of any format, also an unknown one. A refusal's reason is shown to the user.
        """

    @abstractmethod
    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return the memory in bytes that serving takes: weights, KV cache and overhead together.

        Called only for what :meth:`accepts` agreed to. With ``request.devices`` empty, return a claim on RAM
        alone. Raises Refused for parameters that can never work.
        """

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return what serving takes in each way that there is on ``request.devices``, the best first.

        The devices are all GPUs of a worker; a claim may ask for fewer of them, and the scheduler chooses which. So a
        model that fits on one should be claimed for one first, then for several, evenly or in pieces, and last with a
        part in RAM. By default there is one way, that of :meth:`estimate`. Raises Refused when there is none.
        """
        return (self.estimate(request),)

    def preference(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Preference:
        """Return how gladly this engine is taken for ``model`` on ``devices`` when the model names no backend.

        Asked after a yes of :meth:`accepts`. Its reason is shown to the user, also that of a rank below 0.
        """
        return Preference()

    @abstractmethod
    def artifact(self, version: str, platform: Platform) -> Artifact:
        """Return what to install for ``version`` on ``platform``.

        The same arguments always give the same answer. Raises Refused for a platform or version that does not
        exist; a version that merely is not installed yet is no reason to raise.
        """

    @abstractmethod
    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the process to run for ``request``. Nothing is started here.

        Called again, with another port, for every restart. Raises Refused for parameters that can never work.
        """

    def failure(self, log: str) -> str:
        """Return why an engine ended, in a line, from the last lines of its log; empty when they do not say.

        ``log`` may be anything. By default nothing is read out of it; its end is shown all the same.
        """
        return ""

    def metrics(self) -> Mapping[str, str]:
        """Return the engine's own metric names mapped to GPUStack's; empty when it has none."""
        return {}

    #: The path of the engine whose answer :meth:`kv_cache_use` reads; empty when none tells.
    load_path: ClassVar[str] = "/metrics"

    def kv_cache_use(self, answer: str) -> float | None:
        """Return the part of its KV cache that an engine uses, from 0 to 1; None when ``answer`` does not say.

        ``answer`` is what the engine says at :attr:`load_path`, and may be anything. By default the metric is read that
        :meth:`metrics` maps to ``kv_cache_usage_ratio``.
        """
        wanted = {own for own, name in self.metrics().items() if name == "kv_cache_usage_ratio"}
        found = [used for line in answer.splitlines() if (used := _value_of(line, wanted)) is not None]
        return min(1.0, max(found)) if found else None


def _value_of(line: str, wanted: set[str]) -> float | None:
    """Return the value in a line of Prometheus's text format when its metric is ``wanted`` and it is a number from 0."""
    name, _, rest = line.strip().replace("{", " ", 1).partition(" ")
    if name not in wanted:
        return None
    parts = rest.rpartition("}")[2].split()
    try:
        value = float(parts[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


@runtime_checkable
class SpansWorkers(Protocol):
    """What a backend can besides, whose engine serves one model on several workers at once: just these methods.

    Experimental. GPUStack asks when a model fits on no single worker. The members of an instance get their room, their
    ports and their start together, or not at all: when one of them fails, all are ended and started anew, so an engine
    needs no recovery of its own. Members reach each other by :attr:`Member.host` and :attr:`Member.ports`.
    """

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        """Return what each member takes when there is one on each of ``workers``, given by their devices; the leader first.

        A claim may ask for fewer GPUs than there are, never for pieces. Pure. Raises Refused in words for a division
        that the engine cannot make.
        """

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Return the process of the member ``request.member``; pure, as :meth:`InferenceBackend.launch`.

        Only the leader's answers requests, on ``request.host`` and ``request.port``. Called for each attempt, when the
        ports of all members are known and free.
        """


@runtime_checkable
class ComesAsImage(Protocol):
    """What a backend can besides, whose engine comes as a container image too: just this method."""

    def image(self, version: str, platform: Platform) -> ContainerImage:
        """Return the image of ``version`` for ``platform``, whose accelerators say which of several it is.

        Asked when a version is to run in a container and its configuration names no image. Pure. Raises Refused when
        there is none.
        """


@runtime_checkable
class ArrangesMembers(SpansWorkers, Protocol):
    """What a backend that spans workers can besides, whose members need more than a few ports in any order."""

    def arrangement(self, request: LaunchRequest) -> Arrangement:
        """Return how the members come together. Pure; ``request.members`` have no ports yet."""


@runtime_checkable
class SuggestsLess(Protocol):
    """What a backend can besides, that knows how a model takes less memory: just this method."""

    def suggestions(self, request: EstimateRequest) -> Sequence[Sequence[Suggestion]]:
        """Return parameters under which the model of ``request`` needs less memory, in place of those that it has.

        Each inner sequence is one kind of change, from the least to the greatest: a context half as long, then a quarter.
        ``gpustack explain`` tells the first of each kind that fits. Pure. Raises Refused when the parameters are wrong.
        """


@runtime_checkable
class UsesAdapters(Protocol):
    """What a backend can besides, that must know the LoRA adapters which the user's parameters name: just this method."""

    def adapters(self, parameters: Sequence[str]) -> Sequence[str]:
        """Return the absolute paths of the adapters in ``parameters``; of files on the worker. Pure.

        The worker reads them and gives what they say in :attr:`LaunchRequest.adapters`. Raises Refused when the
        parameters are wrong.
        """


class SystemDetector(Extension[S], ABC):
    """Measures a machine's processor, memory and file systems. Exactly one is used: the first that is present."""

    @abstractmethod
    def present(self) -> Verdict:
        """Tell cheaply whether it can measure this machine. Never raises; a no has a reason."""

    @abstractmethod
    async def measure(self, paths: Sequence[Path]) -> SystemReading:
        """Return the present figures, with the file systems that hold ``paths``, each once."""


class GpuDetector(Extension[S], ABC):
    """Finds the accelerators of one vendor on this machine and tells how they are used."""

    #: As in ``nvidia``; devices carry it.
    vendor: ClassVar[str]

    @abstractmethod
    def present(self) -> Verdict:
        """Tell cheaply whether this vendor's devices may be here. Never raises; a no has a reason."""

    @abstractmethod
    async def devices(self) -> Sequence[GpuDevice]:
        """Return the devices in a fixed order. Called only after a yes of :meth:`present`; may be empty."""

    @abstractmethod
    async def usage(self) -> Mapping[str, GpuUsage]:
        """Return the present use by device uuid. A device that cannot be read is left out."""

    @abstractmethod
    def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        """Return how a process is shown exactly ``devices``, which are all of this vendor."""


class BundledModel(Extension[S], ABC):
    """A model whose files come with a plugin: served by its name, without a hub and without a path.

    ``gpustack deploy NAME`` serves it on every worker that has the plugin; the catalog shows its card.
    """

    @abstractmethod
    def card(self) -> ModelCard:
        """Return what people are told about the model before they deploy it. The same at every call."""

    @abstractmethod
    def path(self) -> Path:
        """Return the absolute path of the model's file or directory on this machine.

        Called on the worker whenever the model's files are read or an engine is started, so an upgrade of the plugin
        may move them. Raises Refused when the installation lacks them.
        """
