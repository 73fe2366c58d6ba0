"""Which engines run in containers, from which images, and what those containers are made of."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gpustack.extensions import Guard
from gpustack.kit.command_template import uses
from gpustack.plugin import (
    ComesAsImage,
    ContainerImage,
    DeviceExposure,
    InferenceBackend,
    LaunchPlan,
    ModelFacts,
    Platform,
    Refused,
    ReleaseBinary,
)
from gpustack.schemas import BackendVersionConfig
from gpustack.worker.runners.engine import Container
from gpustack.worker.runners.images import Images
from gpustack.worker.runners.reading import reads


async def image_of(
    plugin: str,
    backend: InferenceBackend[Any],
    version: str,
    platform: Platform,
    config: BackendVersionConfig,
) -> ContainerImage | None:
    """Return the image that the engine is run from; None when it is run as a process.

    Raises Refused when it is to run in a container and nobody says which.
    """
    if config.image_name:
        image = config.image_name.replace("{{version}}", version)
        command = await _program(plugin, backend, version, platform)
        return ContainerImage(image=image, version=version, command=command)
    if config.runner == "container" and isinstance(backend, ComesAsImage):
        found: ContainerImage = await Guard.call(plugin, backend.image, version, platform)
        return found
    try:
        artifact = await Guard.call(plugin, backend.artifact, version, platform)
    except Refused:
        # A command of somebody's own needs nothing of the plugin's.
        if config.runner == "process" and config.run_command and not uses(config.run_command, "command"):
            return None
        raise
    if isinstance(artifact, ContainerImage):
        return artifact
    if config.runner == "container":
        raise Refused(
            f"version {version} of backend {backend.name} is to run in a container, and no image is named; name one by "
            "image_name in the version's configuration"
        )
    return None


async def _program(plugin: str, backend: InferenceBackend[Any], version: str, platform: Platform) -> str:
    """Return what the backend's engine is called in an image that somebody else chose."""
    try:
        artifact = await Guard.call(plugin, backend.artifact, version, platform)
    except Refused:
        return ""  # it is not made for here: then the image knows what to run
    if isinstance(artifact, ReleaseBinary):
        return artifact.executable.rpartition("/")[2]
    # What is not fetched at all has none.
    return str(getattr(artifact, "command", ""))


async def made_ready(
    images: Images,
    image: ContainerImage,
    facts: ModelFacts,
    config: BackendVersionConfig,
    say: Callable[[str], None],
    *,
    besides: Sequence[str] = (),
) -> Container:
    """Return what a container of ``image`` is made of, once the image is here; ``say`` gets a line for each step.

    It reads the model's files, and those at the paths ``besides``, or that such parameters name. Raises GPUStackError with one line when it cannot be had.
    """
    return Container(
        image=await images.ensure(image.image, say),
        entrypoint=tuple(shlex.split(config.entrypoint)),
        reads=await asyncio.to_thread(reads, facts, besides),
    )


def contained(
    container: Container | None, command: str, plan: LaunchPlan, exposure: DeviceExposure
) -> Container | None:
    """Return ``container`` with the command line of ``plan``, whose program is ``command``, and the chosen devices."""
    if container is None:
        return None
    arguments, entrypoint = plan.argv, container.entrypoint
    if arguments[:1] == (command,):
        # The program of the plugin's choice, unless somebody configured another one; "" is the image's own.
        arguments = plan.argv[1:]
        entrypoint = entrypoint or ((command,) if command else ())
    return replace(
        container,
        entrypoint=entrypoint,
        arguments=arguments,
        requests=exposure.requests,
        devices=exposure.device_files,
    )
