"""Turns an assignment into something to run: asks the backend, installs what it names, lays out the command line."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

from gpustack.extensions import Catalogue, Guard, Registered, opened
from gpustack.extensions.catalogue import shown
from gpustack.kit.command_template import filled, uses, words_of
from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.kit.net import LOOPBACK
from gpustack.plugin import (
    Adapter,
    Artifact,
    GpuDevice,
    Host,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    PipxPackage,
    PluginError,
    Probe,
    Refused,
    ResourceClaim,
    UsesAdapters,
)
from gpustack.plugin.commands import described, fill
from gpustack.schemas import BackendVersionConfig, ModelForWorker, ModelInstancePublic
from gpustack.worker.artifacts import ArtifactInstaller
from gpustack.worker.contained import contained, image_of, made_ready
from gpustack.worker.facts import read_adapters_within, read_facts_within, read_sizes_within
from gpustack.worker.groups.launch import MemberLaunch, planned
from gpustack.worker.programs import find_program
from gpustack.worker.runners import ray
from gpustack.worker.runners.engine import Container
from gpustack.worker.runners.images import Images
from gpustack.worker.status import Machine

logger = logging.getLogger(__name__)

#: Characters of a reason that a backend reads out of a log.
_LONGEST = 1000

#: The backend of engines that people describe, which serves those of rows that no plugin brings.
_CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine that is there and proven, for one model."""

    backend: InferenceBackend[Any]
    plugin: str
    version: str
    command: str
    facts: ModelFacts
    config: BackendVersionConfig
    adapters: tuple[Adapter, ...] = ()
    #: What its container is made of; None for a process.
    container: Container | None = None


@dataclass(frozen=True, slots=True)
class Todo:
    """What to start. Of ``env`` a later one wins, all over the plan's own."""

    plan: LaunchPlan
    env: tuple[Mapping[str, str], ...]
    container: Container | None = None


class Desk:
    """The backends of this worker, each made once, and what lies between them and a process.

    An async context manager: its lifetime is that of the backends.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        host: Host,
        installer: ArtifactInstaller,
        machine: Machine,
        *,
        interface: str = "",
        images: Images | None = None,
    ) -> None:
        """``interface`` is the network interface that the settings name; empty for none."""
        self._interface = interface
        self._images = images or Images("docker.io")
        self._catalogue = catalogue
        self._host = host
        self._installer = installer
        self._machine = machine
        self._stack = AsyncExitStack()
        self._backends: dict[str, InferenceBackend[Any]] = {}
        # Opening one may take a while, in which others ask for it.
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def install(
        self, instance: ModelInstancePublic, model: ModelForWorker, path: str, say: Callable[[str], None]
    ) -> Installed:
        """Read the headers of the model at ``path`` and make its engine ready; ``say`` gets a line for each step.

        The model's ``config`` says what is not left to the plugin. Raises GPUStackError with one line: InvalidInput and
        Refused when trying again cannot help.
        """
        if model.trouble:
            raise Refused(model.trouble)
        config = model.config
        registered = self._registered(instance, model.served_by)
        facts = await self._facts(registered, path)
        backend = await self._backend(registered)
        adapters = await self._adapters(registered.plugin, backend, model)
        version = instance.backend_version or model.backend_version or backend.default_version
        platform = self._machine.platform()
        # A command line of somebody's own, filled in as far as that can name a program: a model may be one.
        own = _own_line(config) and filled(words_of(config.run_command)[:1], {"model_path": facts.path})[0]
        if own and config.runner == "process":
            _refuse_packages(model, "runs by a command of its own")
            # Before the plugin is asked for anything to install: it need not know such a version.
            environments = (config.env, model.env)
            command = await asyncio.to_thread(find_program, own, self._host.bin_dir, *environments)
            return Installed(backend, registered.plugin, version, command, facts, config, adapters)
        if (image := await image_of(registered.plugin, backend, version, platform, config)) is not None:
            _refuse_packages(model, "runs in a container")
            besides = (config.run_command, *model.backend_parameters, *(each.path for each in adapters))
            container = await made_ready(self._images, image, facts, config, say, besides=besides)
            command = own or image.command
            return Installed(backend, registered.plugin, version, command, facts, config, adapters, container)
        artifact = await Guard.call(registered.plugin, backend.artifact, version, platform)
        extras = model.extra_packages(config.packages)
        if extras and not isinstance(artifact, PipxPackage):
            raise Refused(f"backend {instance.backend} has no environment that packages could be added to")
        installed = await self._installer.ensure(registered.name, artifact, say, extras)
        return Installed(backend, registered.plugin, version, str(installed), facts, config, adapters)

    async def _facts(self, registered: Registered[InferenceBackend[Any]], path: str) -> ModelFacts:
        try:
            return await read_facts_within(path)
        except InvalidInput:
            if registered.name != _CUSTOM:
                raise
            # Only its operator knows what such an engine reads.
            return await read_sizes_within(path)

    async def _adapters(
        self, plugin: str, backend: InferenceBackend[Any], model: ModelForWorker
    ) -> tuple[Adapter, ...]:
        """Return what the files of the adapters say that the parameters name."""
        if not isinstance(backend, UsesAdapters):
            return ()
        paths = await Guard.call(plugin, backend.adapters, tuple(model.backend_parameters))
        return await read_adapters_within(paths)

    async def install_engine(
        self, backend: str, version: str, packages: tuple[str, ...], say: Callable[[str], None]
    ) -> None:
        """Make an engine ready before a model needs it. Raises GPUStackError with one line."""
        await self._installer.ensure(backend, await self._artifact(backend, version), say, packages)

    async def remove_engine(self, backend: str, version: str, packages: tuple[str, ...]) -> None:
        """Remove what may be left of an engine that does not work. Raises GPUStackError with one line."""
        try:
            artifact = await self._artifact(backend, version)
        except Refused:  # there is no such version, or none for this machine: it was never begun
            return
        await self._installer.remove(backend, artifact, extras=packages)

    async def _artifact(self, name: str, version: str) -> Artifact:
        registered = self._named(name)
        backend = await self._backend(registered)
        platform = self._machine.platform()
        artifact: Artifact = await Guard.call(registered.plugin, backend.artifact, version, platform)
        return artifact

    async def plan(
        self,
        installed: Installed,
        instance: ModelInstancePublic,
        model: ModelForWorker,
        *,
        port: int,
        launch: MemberLaunch | None = None,
    ) -> Todo:
        """Return what to run on ``port``, with what shows it the chosen devices and no others.

        With ``launch`` it is one member of an instance that spans workers.
        """
        by_index = {device.index: device for device in self._machine.devices}
        if missing := [index for index in instance.gpu_indexes if index not in by_index]:
            raise InvalidInput(
                f"GPU {missing[0]}, chosen for {instance.name}, is not on this worker any more; "
                "remove the instance so that it is placed anew"
            )
        devices = tuple(by_index[index] for index in instance.gpu_indexes)
        claim = instance.computed_resource_claim
        request = LaunchRequest(
            instance_name=instance.name,
            model_name=model.name,
            model=installed.facts,
            command=installed.command,
            version=installed.version,
            host=LOOPBACK,
            port=port,
            model_path=installed.facts.path,
            parameters=tuple(model.backend_parameters),
            claim=ResourceClaim(ram=claim.ram, vram=sum(claim.vram.values()), gpus=len(claim.vram)),
            devices=devices,
            pieces=tuple(claim.pieces.get(index, 0) for index in instance.gpu_indexes)
            if claim.pieces
            else (),
            interface=self._interface,
            adapters=installed.adapters,
            run_command=installed.config.run_command,
        )
        plan = await planned(installed.plugin, installed.backend, request, launch)
        if request.run_command and installed.backend.name != _CUSTOM:
            plan = replace(plan, argv=(*described(request), *fill(request, *request.parameters)))
        if model.health_check_path and (launch is None or launch.number == 0):
            plan = replace(plan, ready=Probe(path=model.health_check_path, timeout=plan.ready.timeout))
        exposure = await self._machine.expose(devices)
        own = {name: fill(request, value)[0] for name, value in installed.config.env.items()}
        # What somebody writes for a container goes to the image's own entry point, as with `docker run`.
        program = "" if _own_line(installed.config) else installed.command
        container = contained(installed.container, program, plan, exposure)
        return Todo(plan, (exposure.env, own), container)

    async def failure(self, instance: ModelInstancePublic, log: str) -> str:
        """Return why its engine ended, in a line, from the end of its ``log``; empty when nobody can say."""
        try:
            registered = self._registered(instance)
            backend = await self._backend(registered)
            why: object = await Guard.call(registered.plugin, backend.failure, log)
        except GPUStackError as error:
            logger.warning("instance %s: why its engine ended is not known: %s", instance.name, error)
            return ""
        return " ".join(str(why).split())[:_LONGEST]

    async def ray(self, command: str, say: Callable[[str], None]) -> str:
        """Return the Ray for the engine ``command``: its own, or one that is installed for it. Raises GPUStackError."""
        found = ray.beside(command) or str(await self._installer.ensure("ray", ray.RAY, say))
        await ray.check_version(found)
        return found

    @property
    def devices(self) -> tuple[GpuDevice, ...]:
        """The GPUs of this machine."""
        return tuple(self._machine.devices)

    async def load_path(self, instance: ModelInstancePublic) -> str:
        """Return what of its engine says how full its KV cache is; empty for nothing. Raises GPUStackError."""
        return (await self._backend(self._registered(instance))).load_path

    async def kv_cache_use(self, instance: ModelInstancePublic, answer: str) -> float | None:
        """Return what the engine's ``answer`` says of its KV cache, 0 to 1. Raises GPUStackError."""
        registered = self._registered(instance)
        backend = await self._backend(registered)
        used: object = await Guard.call(registered.plugin, backend.kv_cache_use, answer)
        if used is None:
            return None
        if not isinstance(used, float | int) or not 0 <= used <= 1:
            raise PluginError(f"kv_cache_use returned {shown(used)}, which is not between 0 and 1")
        return float(used)

    def _registered(
        self, instance: ModelInstancePublic, served_by: str = ""
    ) -> Registered[InferenceBackend[Any]]:
        """Return the backend of a plugin that serves the instance; who asks later need not say which that is."""
        backends = self._catalogue.backends
        return self._named(
            served_by or (instance.backend if instance.backend in backends else _CUSTOM), instance.backend
        )

    def _named(self, name: str, called: str = "") -> Registered[InferenceBackend[Any]]:
        """Return the backend of a plugin; ``called`` is how people call it, where that is another name."""
        if (registered := self._catalogue.backends.get(name)) is not None:
            return registered
        known = ", ".join(sorted(self._catalogue.backends)) or "none"
        raise Refused(f"backend {(called or name)!r} is not installed on this worker; it has: {known}")

    async def _backend(self, registered: Registered[InferenceBackend[Any]]) -> InferenceBackend[Any]:
        async with self._making[registered.name]:
            if (known := self._backends.get(registered.name)) is not None:
                return known
            backend = await opened(self._stack, self._catalogue, registered, self._host)
            self._backends[registered.name] = backend
            return backend


def _refuse_packages(model: ModelForWorker, why: str) -> None:
    """Raise Refused when a model wants packages in an environment that is not made for it."""
    if packages := model.extra_packages():
        raise Refused(f"{model.name} {why}, which has no environment that {packages[0]} could be added to")


def _own_line(config: BackendVersionConfig) -> bool:
    """Tell whether a command line is configured that does without the plugin's own program."""
    return bool(config.run_command) and not uses(config.run_command, "command")
