"""Engines carried to a machine without a network: an archive with every wheel of an environment, and its hashes.

The archive is a tar file: ``manifest.json`` first, then the wheels it lists. What GPUStack itself brings, the launcher of
an engine, is not in it: the other machine has its own.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.kit.paths import make_dir, sync_dir, write_atomic
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.folders import EXPORT, IMPORT
from gpustack.worker.artifacts.installer import ArtifactInstaller, Progress
from gpustack.worker.artifacts.pins import hashes_of, sha256_of
from gpustack.worker.artifacts.recipe import Recipe
from gpustack.worker.artifacts.wheels import MANIFEST, Wheels

_FORMAT = 1
_LONGEST_MANIFEST = 4 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}\.whl")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """One wheel of an archive."""

    name: str
    version: str
    file: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive is of, and for which machines."""

    backend: str
    version: str
    #: Packages that a deployment adds.
    packages: list[str]
    #: As in ``3.11``, ``linux`` and ``x86_64``.
    python: str
    system: str
    machine: str
    wheels: list[WheelFile]
    format: int = _FORMAT


async def export_engine(installer: ArtifactInstaller, recipe: Recipe, file: Path, say: Progress) -> Manifest:
    """Install the engine unless it is there, and write ``file`` with the wheels of its environment.

    Raises GPUStackError with one line; then there is no such file, or the one of before.
    """
    # Now, and not after all was fetched.
    await asyncio.to_thread(_check_place, file)
    link = await installer.ensure(recipe.backend, recipe.package, say, recipe.extras)
    make_dir(installer.home, what="data directory")
    # The lock tells whose folder it is, should we be killed; and nobody removes the engine meanwhile.
    async with installer.alone(recipe.name, say):
        return await _export(installer, recipe, link, file, say)


def _check_place(file: Path) -> None:
    if not file.parent.is_dir():
        raise GPUStackError(f"{file} cannot be written: there is no folder {file.parent}")
    make_dir(file.parent, what="folder")


async def _export(
    installer: ArtifactInstaller, recipe: Recipe, link: Path, file: Path, say: Progress
) -> Manifest:
    with tempfile.TemporaryDirectory(dir=installer.home, prefix=f"{EXPORT}{recipe.name}-") as folder:
        wheels = Path(folder)
        kept = Wheels(installer.home, recipe.name)
        if kept.exists():
            await asyncio.to_thread(kept.check)
            wheels = kept.folder
        elif pins := await asyncio.to_thread(_pins, link, recipe):
            await installer.fetch(recipe, link, pins, wheels, say)
        say(f"writing {file}")
        return await asyncio.to_thread(_write, recipe, link, wheels, file)


def read_manifest(file: Path) -> Manifest:
    """Return what an archive says of itself. Raises InvalidInput with one line for a file that is none."""
    try:
        with tarfile.open(file, "r:") as archive:
            return _manifest(archive, file)
    except (OSError, tarfile.TarError) as error:
        why = getattr(error, "strerror", None) or "it is no archive of `gpustack backends export`"
        raise InvalidInput(f"{file}: {why}") from error


async def import_engine(installer: ArtifactInstaller, recipe: Recipe, file: Path, say: Progress) -> Path:
    """Take the wheels of an archive over and install the engine from them; return its executable.

    The wheels are kept for later: the environment is made from nothing else. Raises InvalidInput with one line for an
    archive that is for another machine, or that was changed, and InstallError.
    """
    manifest = read_manifest(file)
    _check_machine(manifest, file)
    make_dir(installer.home, what="data directory")
    async with installer.alone(recipe.name, say):
        say(f"checking {file}")
        await asyncio.to_thread(_take_over, installer, recipe, manifest, file)
    return await installer.ensure(recipe.backend, recipe.package, say, recipe.extras)


def _pins(link: Path, recipe: Recipe) -> list[str]:
    """Return what is in the environment, as requirements; but not what GPUStack supplied."""
    ours = (
        canonicalize_name(recipe.package.package.partition("[")[0])
        if recipe.package.wheel is not None
        else ""
    )
    pins = []
    for found in importlib.metadata.distributions(path=[str(_site_packages(link))]):
        name = canonicalize_name(found.metadata["Name"])
        if name == ours:
            continue
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        url = str(origin.get("url", ""))
        if url.startswith(("http://", "https://")):
            pins.append(f"{name} @ {url}")
        else:
            pins.append(f"{name}=={found.version}")
    return sorted(pins)


def _site_packages(link: Path) -> Path:
    root = link.resolve().parents[1]
    found = [*root.glob("lib/python3*/site-packages"), *root.glob("Lib/site-packages")]
    if not found:
        raise InstallError(
            f"{link} lies in no Python environment, so there is nothing to export", again=False
        )
    return found[0]


def _write(recipe: Recipe, link: Path, wheels: Path, file: Path) -> Manifest:
    locked = hashes_of(recipe.package.constraints)
    listed = [_described(path, locked) for path in sorted(wheels.glob("*.whl"))]
    python = _site_packages(link).parent.name.removeprefix("python")
    manifest = Manifest(
        backend=recipe.backend,
        version=recipe.package.version,
        packages=list(recipe.extras),
        python=python if python[:1].isdigit() else _python_here(),
        system=platform.system().lower(),
        machine=platform.machine().lower(),
        wheels=listed,
    )
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("wb") as target, tarfile.open(fileobj=target, mode="w") as archive:
            text = json.dumps(asdict(manifest), indent=1).encode()
            archive.addfile(_member(MANIFEST, len(text)), BytesIO(text))
            for each in listed:
                with (wheels / each.file).open("rb") as source:
                    archive.addfile(_member(each.file, each.size), source)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise GPUStackError(f"{file} cannot be written: {error.strerror}") from error
    return manifest


def _described(path: Path, locked: dict[str, set[str]]) -> WheelFile:
    name, version, _, _ = parse_wheel_filename(path.name)
    digest = sha256_of(path)
    if name in locked and locked[name] and digest not in locked[name]:
        raise InstallError(
            f"{path.name} is not the file that the lock of this version names (its hash is another)"
        )
    return WheelFile(
        name=str(name), version=str(version), file=path.name, sha256=digest, size=path.stat().st_size
    )


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _manifest(archive: tarfile.TarFile, file: Path) -> Manifest:
    member = archive.next()
    content = None
    if (
        member is not None
        and member.isfile()
        and member.name == MANIFEST
        and member.size <= _LONGEST_MANIFEST
    ):
        content = archive.extractfile(member)
    if content is None:
        raise InvalidInput(f"{file}: it is no archive of `gpustack backends export`")
    try:
        values: dict[str, Any] = json.loads(content.read())
        if values.get("format") != _FORMAT:
            raise InvalidInput(
                f"{file} was written by another version of GPUStack (format {values.get('format')}); export it again"
            )
        wheels = [WheelFile(**each) for each in values.pop("wheels")]
        manifest = Manifest(**values, wheels=wheels)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"{file}: its list of wheels cannot be read; export it again") from error
    if not _is_sound(manifest):
        raise InvalidInput(f"{file}: its list of wheels makes no sense; export it again")
    for each in manifest.wheels:
        if not _FILE.fullmatch(str(each.file)):
            raise InvalidInput(f"{file} lists {str(each.file)[:100]!r}, which is no wheel's name")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    """Tell whether every value is of its kind."""
    packages: object = manifest.packages
    texts: list[object] = [
        *(manifest.backend, manifest.version, manifest.python, manifest.system, manifest.machine),
        *(packages if isinstance(packages, list) else [packages, None]),
    ]
    for each in manifest.wheels:
        texts += [each.name, each.version, each.file, each.sha256]
    return all(isinstance(text, str) for text in texts)


def _check_machine(manifest: Manifest, file: Path) -> None:
    there = (manifest.system, manifest.machine, manifest.python)
    here = (platform.system().lower(), platform.machine().lower(), _python_here())
    if there != here:
        raise InvalidInput(
            f"{file} was exported on {there[0]} {there[1]} with Python {there[2]}; here is {here[0]} {here[1]} with "
            f"Python {here[2]}: export it on a machine like this one"
        )
    tags = set(sys_tags())
    for each in manifest.wheels:
        try:
            fits = bool(tags & parse_wheel_filename(each.file)[3])
        except InvalidWheelFilename:
            fits = False
        if not fits:
            raise InvalidInput(
                f"{file} holds {each.file}, which does not run on this machine: its system is older, or another one"
            )


def _python_here() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _take_over(installer: ArtifactInstaller, recipe: Recipe, manifest: Manifest, file: Path) -> None:
    """Put the archive's wheels, each with the hash that is listed, where the environment is made from."""
    wheels = Wheels(installer.home, recipe.name)
    make_dir(wheels.folder.parent, what="data directory")
    place = Path(tempfile.mkdtemp(dir=wheels.folder.parent, prefix=f"{IMPORT}{recipe.name}-"))
    try:
        missing = {each.file: each for each in manifest.wheels}
        with tarfile.open(file, "r:") as archive:
            _manifest(archive, file)
            for member in archive:
                if member.name == MANIFEST:
                    continue
                listed = missing.pop(member.name, None)
                content = archive.extractfile(member) if member.isfile() else None
                if listed is None or content is None:
                    raise InvalidInput(f"{file} holds {member.name[:100]!r}, which its list does not have")
                _copy(content, place / listed.file, listed, file)
        if missing:
            raise InvalidInput(f"{file} lacks {next(iter(missing))}; it is not whole")
        write_atomic(place / MANIFEST, json.dumps(asdict(manifest), indent=1))
        wheels.forget()
        place.rename(wheels.folder)
        sync_dir(wheels.folder.parent)
    except tarfile.TarError as error:
        raise InvalidInput(f"{file} is not whole: {error}") from error
    except OSError as error:
        raise GPUStackError(f"{file} cannot be taken over: {error.strerror}: {error.filename}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _copy(source: IO[bytes], target: Path, listed: WheelFile, file: Path) -> None:
    with target.open("xb") as copy:
        shutil.copyfileobj(source, copy, _PIECE)
    if sha256_of(target) != listed.sha256:
        raise InvalidInput(
            f"{file} was changed: {listed.file} is not what was exported (its hash is another)"
        )
