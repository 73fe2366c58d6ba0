"""How pipx is told what belongs into an environment: more packages, the lock of a version, wheels that were imported.

A lock has a line for each package, ``name==version --hash=sha256:…``. uv checks the hashes of a constraints file, of those
packages that it names. pip, once it sees one hash, wants one for everything, the engine itself included, which pipx
names without; so with pip the files of the lock are fetched first, with hashes required, and the environment is
made of those very files.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)

from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.worker.artifacts.errors import InstallError
from gpustack.worker.artifacts.recipe import Recipe
from gpustack.worker.artifacts.wheels import Wheels

#: Runs a command to its end, given a word for what it does, and returns its status; prints go to the log.
Run = Callable[[list[str], str], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Below ``home``, the files that pip or uv are pointed at for one environment."""

    home: Path
    environ: Mapping[str, str]
    uv: bool

    async def arguments(self, recipe: Recipe, run: Run) -> list[str]:
        """Return pip's arguments for the environment, which uv understands as well. Raises InstallError."""
        folder = self.home / "pins" / recipe.name
        # A killed install may have left files of an older lock.
        await asyncio.to_thread(self.forget, recipe)
        arguments: list[str] = []
        if recipe.requirements:
            arguments += ["-r", str(_written(folder / "requirements.txt", recipe.requirements))]
        lock = recipe.package.constraints.splitlines()
        kept = Wheels(self.home, recipe.name)
        if kept.exists():
            # Only what was imported: another file, though newer, is not what was tried elsewhere.
            await asyncio.to_thread(kept.check)
            lock = kept.lock()
            arguments += ["--no-index", "--find-links", str(kept.folder)]
        if not any(line.strip() for line in lock):
            return arguments
        if "--hash" not in "\n".join(lock):
            return [*arguments, *self._constraints(_written(folder / "constraints.txt", lock))]
        if self.uv:
            return [*arguments, *self._constraints(_written(folder / "lock.txt", lock))]
        files = kept.folder if kept.exists() else await self._fetched(recipe, folder, lock, run)
        urls = [f"{_name(path)} @ {path.as_uri()}" for path in sorted(files.iterdir()) if _name(path)]
        return [*arguments, *self._constraints(_written(folder / "constraints.txt", urls))]

    def forget(self, recipe: Recipe) -> None:
        """Remove what was fetched and written for the environment."""
        shutil.rmtree(self.home / "pins" / recipe.name, ignore_errors=True)

    def _constraints(self, path: Path) -> list[str]:
        """Return the argument, with those of the user, whose place it would take with uv."""
        users = self.environ.get("UV_CONSTRAINT", "").split() if self.uv else []
        return [word for each in (str(path), *users) for word in ("-c", each)]

    async def _fetched(self, recipe: Recipe, folder: Path, lock: list[str], run: Run) -> Path:
        """Return the folder with the files of the lock, each of which had one of its hashes."""
        files = make_dir(folder / "files", what="data directory")
        pip = await a_pip(self.home, run)
        listed = _written(folder / "lock.txt", lock)
        command = [*pip, "download", "--no-deps", "--require-hashes", "-r", str(listed), "-d", str(files)]
        if await run(command, f"fetching the files that the lock of {recipe.title} names"):
            raise InstallError("")  # what was printed says it better
        return files


async def a_pip(home: Path, run: Run) -> list[str]:
    """Return a command that is pip: pipx's own, that of our environment or of our Python, or one made below ``home``."""
    if (python := _python(home / "shared")).exists():
        return [str(python), "-m", "pip", "--disable-pip-version-check"]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check"]
    if (wheel := _bundled_pip()) is not None:
        return [sys.executable, "-P", str(wheel / "pip"), "--disable-pip-version-check"]
    await _make_place(home, run)
    return [str(_python(home / "pip")), "-m", "pip", "--disable-pip-version-check"]


async def _make_place(home: Path, run: Run) -> None:
    """Make an environment with a pip below ``home`` where there is none. Raises InstallError."""
    place, lock = home / "pip", FileLock(home / ".pip.lock")
    # Written last: its python is there before its pip.
    whole = place / "whole"
    # Installs of other engines may need it at the same time, and none may clear it under another.
    while not lock.acquire():
        await asyncio.sleep(0.2)
    try:
        if whole.exists():
            return
        if await run([sys.executable, "-m", "venv", "--clear", str(place)], "making a place for pip"):
            shutil.rmtree(place, ignore_errors=True)
            raise InstallError(
                f"{sys.executable} cannot make virtual environments: install its venv module "
                "(Debian, Ubuntu: apt install python3-venv), or uv"
            )
        whole.touch()
    finally:
        lock.release()


def _bundled_pip() -> Path | None:
    """Return the wheel of pip that Python makes environments with, which runs as it is; Debian's Python has none."""
    folder = Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")
    return max(folder.glob("pip-*.whl"), default=None)


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(constraints: str) -> dict[str, set[str]]:
    """Return the SHA-256 digests that a lock names for each package, by its normal name."""
    found: dict[str, set[str]] = {}
    for line in constraints.replace("\\\n", " ").splitlines():
        if (match := re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*==", line)) is not None:
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            found.setdefault(name, set()).update(re.findall(r"--hash[= ]sha256:([0-9a-f]{64})", line))
    return found


def _python(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def _name(path: Path) -> str:
    """Return the package that a file is of; empty for other files."""
    try:
        return str(parse_wheel_filename(path.name)[0])
    except InvalidWheelFilename:
        pass
    try:
        return str(parse_sdist_filename(path.name)[0])
    except InvalidSdistFilename:
        return ""


def _written(path: Path, lines: tuple[str, ...] | list[str]) -> Path:
    make_dir(path.parent, what="data directory")
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return path
