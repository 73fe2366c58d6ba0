"""The engines of this machine: where they are, and installing and removing them as its worker would."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.cli.names import meant
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import Conflict, NotFound
from gpustack.kit.text import shorten

if TYPE_CHECKING:
    from gpustack.extensions import Catalogue
    from gpustack.plugin import PipxPackage, ReleaseBinary
    from gpustack.schemas import InferenceBackendPublic
    from gpustack.worker.artifacts import ArtifactInstaller
    from gpustack.worker.artifacts.archive import Manifest

Say = Callable[[str], None]
#: What an engine is asked for that has nothing for machines without accelerators.
_ACCELERATORS = ("cuda", "rocm")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the worker of this machine has its engines, or would have."""

    data_dir: Path
    bin_dir: Path
    log_dir: Path
    pipx_path: str
    tools_url: str = ""

    def installer(self) -> ArtifactInstaller:
        """Return what installs there."""
        from gpustack.worker.artifacts import ArtifactInstaller

        return ArtifactInstaller(
            bin_dir=self.bin_dir,
            data_dir=self.data_dir,
            log_dir=self.log_dir,
            pipx_path=self.pipx_path,
            tools_url=self.tools_url,
        )


def places(flags: dict[str, str]) -> Places:
    """Return the places: what was typed, else those of the GPUStack that runs here, else as `start` would choose.

    ``flags`` are by the options' names, without those that were not typed. Raises SettingsError.
    """
    from gpustack.cli.loading import load_plugins
    from gpustack.client.local import read_state
    from gpustack.settings.load import load

    settings = load(flags, load_plugins().options)
    bin_dir, log_dir, pipx_path = settings.bin_dir, settings.log_dir, settings.pipx_path
    state = read_state(settings.data_dir)
    if state is not None and state.running:
        log_dir = state.log_dir
        bin_dir = bin_dir if "bin_dir" in flags else state.bin_dir or bin_dir
        pipx_path = pipx_path if "pipx_path" in flags else state.pipx_path or pipx_path
    return Places(
        data_dir=settings.data_dir,
        bin_dir=bin_dir,
        log_dir=log_dir,
        pipx_path=pipx_path,
        tools_url=settings.tools_download_base_url,
    )


def known_here() -> list[InferenceBackendPublic]:
    """Return the backends of the plugins that are installed here, as a server would list them."""
    from gpustack.cli.loading import load_plugins
    from gpustack.schemas import InferenceBackendPublic

    return [
        InferenceBackendPublic(
            id=number,
            backend_name=name,
            default_version=registered.cls.default_version,
            plugin=registered.plugin,
            distribution=registered.distribution,
            distribution_version=registered.version,
        )
        for number, (name, registered) in enumerate(sorted(load_plugins().backends.items()), start=1)
    ]


def named(text: str) -> tuple[str, str]:
    """Return backend and version of ``BACKEND[==VERSION]``, or with ``@``; an empty version is not said.

    Raises WrongUsage.
    """
    name, sign, version = (part.strip() for part in text.strip().partition("==" if "==" in text else "@"))
    if not name or (sign and not version):
        raise WrongUsage(
            f"{shorten(text, 160)!r} is not BACKEND, BACKEND==VERSION or BACKEND@VERSION, such as llama-cpp==1.2.3"
        )
    if version and not _VERSION.fullmatch(version):
        raise WrongUsage(f"{shorten(version, 160)!r} is no version; name one such as {name}==1.2.3")
    return name, version


def extras_of(packages: Sequence[str]) -> tuple[str, ...]:
    """Return what ``--package`` named, in one spelling. Raises WrongUsage."""
    from gpustack.schemas.packages import normal_packages

    try:
        return normal_packages(packages)
    except ValueError as error:
        raise WrongUsage(f"--package: {error}") from error


async def install(where: Places, text: str, say: Say, packages: Sequence[str] = ()) -> tuple[str, str, Path]:
    """Install an engine unless it is there; return backend, version and the path of its executable."""
    name, version = named(text)
    extras = extras_of(packages)
    async with package_of(where, name, version) as package:
        path = await (await _tidy(where)).ensure(name, package, say, extras)
        return name, package.version, path


async def remove(where: Places, text: str, say: Say, packages: Sequence[str] = ()) -> tuple[str, str]:
    """Remove an engine; return backend and version. Raises NotFound when it is not there, Conflict while it runs."""
    from gpustack.cli.loading import load_plugins
    from gpustack.cli.processes import using

    name, version = named(text)
    extras = extras_of(packages)
    installed = where.installer().installed().get(name, [])
    if not version:
        if name not in (known := load_plugins()).backends:
            raise NotFound(
                f"{_unknown(known, name)}; what was described is removed with `gpustack backends delete {name}`"
            )
        raise WrongUsage(f"which version? {_have(where, name, installed)}; name one as {name}==VERSION")
    async with package_of(where, name, version) as package:
        installer = where.installer()
        if users := using(where.data_dir, installer.link(package, extras)):
            raise Conflict(
                f"{name} {version} runs as {', '.join(users)}; remove those models or change their version first"
            )
        if not await installer.remove(name, package, say, extras):
            raise NotFound(f"{name} {version} is not installed here: {_have(where, name, installed)}")
        return name, version


async def export_archive(
    where: Places, text: str, file: Path, say: Say, packages: Sequence[str] = ()
) -> Manifest:
    """Write an archive of an engine, installing it first if need be; return what is in it."""
    from gpustack.worker.artifacts.archive import export_engine
    from gpustack.worker.artifacts.recipe import Recipe

    name, version = named(text)
    extras = extras_of(packages)
    async with package_of(where, name, version) as package:
        return await export_engine(await _tidy(where), Recipe.of(name, package, extras), file, say)


async def import_archive(where: Places, file: Path, say: Say) -> tuple[Manifest, Path]:
    """Install an engine from an archive; return what was in it and the path of the executable."""
    from gpustack.worker.artifacts.archive import import_engine, read_manifest
    from gpustack.worker.artifacts.recipe import Recipe

    manifest = await asyncio.to_thread(read_manifest, file)
    name, version = named(f"{manifest.backend}=={manifest.version}")
    extras = extras_of(manifest.packages)
    async with package_of(where, name, version) as package:
        path = await import_engine(await _tidy(where), Recipe.of(name, package, extras), file, say)
        return manifest, path


async def _tidy(where: Places) -> ArtifactInstaller:
    """Return what installs there, once what an earlier command has left that was killed is undone."""
    installer = where.installer()
    await installer.settle()
    return installer


def _have(where: Places, name: str, installed: list[str]) -> str:
    return f"{where.bin_dir} has {', '.join(f'{name}=={each}' for each in installed) or f'no {name}'}"


@asynccontextmanager
async def package_of(where: Places, name: str, version: str) -> AsyncIterator[PipxPackage | ReleaseBinary]:
    """Give what the backend is installed from on this machine. Raises NotFound, and Refused for a wrong version."""
    import logging

    from gpustack.cli.loading import load_plugins
    from gpustack.plugin import Host, PipxPackage, Refused, ReleaseBinary
    from gpustack.worker.artifacts.recipe import not_made

    catalogue = load_plugins()
    registered = catalogue.backends.get(name)
    if registered is None:
        raise NotFound(_unknown(catalogue, name))
    host = Host(log=logging.getLogger("gpustack.plugins"), data_dir=where.data_dir, bin_dir=where.bin_dir)
    async with catalogue.make(registered, host) as backend:
        wanted = version or backend.default_version
        artifact = await _artifact(registered.plugin, backend, wanted)
        if not isinstance(artifact, PipxPackage | ReleaseBinary):
            raise Refused(f"backend {name} {not_made(artifact)}")
        yield artifact


async def _artifact(plugin: str, backend: Any, version: str) -> Any:
    """Return what the backend has for machines without accelerators, else for those with one. Raises Refused.

    Nobody looks for accelerators here: images and archives are made on machines that have none.
    """
    import platform

    from gpustack.extensions import Guard
    from gpustack.plugin import Platform, Refused

    here = Platform(system=platform.system().lower(), machine=platform.machine().lower())
    try:
        return await Guard.call(plugin, backend.artifact, version, here)
    except Refused:
        for each in _ACCELERATORS:
            with suppress(Refused):
                return await Guard.call(
                    plugin, backend.artifact, version, replace(here, accelerators=(each,))
                )
        raise


def _unknown(catalogue: Catalogue, name: str) -> str:
    known = sorted(catalogue.backends)
    return f"there is no backend {name!r}{meant(name, known)}; installed are: {', '.join(known) or 'none'}"
