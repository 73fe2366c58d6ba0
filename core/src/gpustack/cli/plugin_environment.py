"""The Python environment that GPUStack runs from, and installing distributions into it or removing them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import Conflict, GPUStackError, NotFound
from gpustack.kit.text import shorten

_GROUP = "gpustack"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAMED = re.compile(rf"({_NAME})(?:==[0-9A-Za-z][0-9A-Za-z.!+_-]*)?")
_ARCHIVES = (".whl", ".tar.gz")
#: What GPUStack itself is; all that these need belongs to it.
_ROOTS = ("gpustack", "gpustack-core")
#: Answers no question, draws nothing, changes no other environment than the one it is told.
_QUIET = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_USER": "0",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_NO_PROGRESS": "1",
    "NO_COLOR": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be installed: as the installer is told, and the distribution's name, empty when that is not known."""

    what: str
    distribution: str
    path: bool


def wanted(text: str) -> Wanted:
    """Understand ``NAME``, ``NAME==VERSION``, or the path of a wheel, an archive or a project. Raises WrongUsage."""
    if found := _NAMED.fullmatch(text):
        if not text.endswith(_ARCHIVES):
            return Wanted(what=text, distribution=canonical(found[1]), path=False)
    elif text.startswith("-") or "://" in text or not text.strip():
        raise WrongUsage(f"{shorten(text, 160)!r} is not NAME, NAME==VERSION or a path")
    path = Path(text).expanduser()
    if not path.exists():
        looks_like_path = "/" in text or text.endswith(_ARCHIVES) or text.startswith(("~", "."))
        why = "is not there" if looks_like_path else "is not NAME, NAME==VERSION or a path"
        raise WrongUsage(f"{shorten(text, 160)!r} {why}")
    if path.is_dir() and not ((path / "pyproject.toml").is_file() or (path / "setup.py").is_file()):
        raise WrongUsage(f"{text} is no Python project: it has no pyproject.toml")
    if path.is_file() and not path.name.endswith(_ARCHIVES):
        raise WrongUsage(f"{text} is no wheel (.whl) and no source archive (.tar.gz)")
    return Wanted(what=str(path.absolute()), distribution=_name_in(path), path=True)


def canonical(name: str) -> str:
    """Return a distribution's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def plugins_now() -> set[tuple[str, str, str]]:
    """Return plugin, distribution and version of all that is installed, without loading any."""
    return {
        (point.name, point.dist.name, point.dist.version)
        for point in importlib.metadata.entry_points(group=_GROUP)
        if point.dist is not None
    }


def removable(name: str) -> str:
    """Return the distribution that brings the plugin ``name``, or has that name itself.

    Raises NotFound, Conflict when GPUStack needs it, and WrongUsage when two bring a plugin of that name.
    """
    installed = plugins_now()
    brings = {distribution for _, distribution, _ in installed if canonical(distribution) == canonical(name)}
    brings = brings or {distribution for plugin, distribution, _ in installed if plugin == name}
    if not brings:
        from gpustack.cli.names import meant

        known = sorted({plugin for plugin, _, _ in installed})
        raise NotFound(
            f"no plugin {shorten(name, 160)!r} is installed here{meant(name, known)}; see `gpustack plugins`"
        )
    if len(brings) > 1:
        raise WrongUsage(f"{name} is a plugin of {' and of '.join(sorted(brings))}; name one of these")
    (distribution,) = brings
    if canonical(distribution) in own():
        plugins = ",".join(sorted(plugin for plugin, of, _ in installed if of == distribution))
        raise Conflict(
            f"{distribution} is a part of GPUStack and stays; GPUSTACK_PLUGINS_BLOCK={plugins} keeps it from being loaded"
        )
    return distribution


def own() -> dict[str, str]:
    """Return the distributions that GPUStack itself needs, with their versions."""
    from packaging.requirements import InvalidRequirement, Requirement

    versions: dict[str, str] = {}
    waiting = [*_ROOTS]
    while waiting:
        name = canonical(waiting.pop())
        if name in versions:
            continue
        with suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.distribution(name)
            versions[name] = found.version
            for text in found.requires or ():
                with suppress(InvalidRequirement):
                    needed = Requirement(text)
                    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                        waiting.append(needed.name)
    return versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """What changes GPUStack's own environment: pip or uv."""

    name: str
    #: Of the command, with what comes before ``install`` and after it.
    command: tuple[str, ...]
    options: tuple[str, ...] = ()

    def install(self, what: Wanted) -> None:
        """Install it. What GPUStack itself needs keeps its version. Raises GPUStackError with one line."""
        with tempfile.TemporaryDirectory(prefix="gpustack-") as folder:
            kept = Path(folder, "constraints.txt")
            kept.write_text("".join(f"{name}=={version}\n" for name, version in own().items()))
            words = ["install", *self.options, "--constraint", str(kept)]
            if what.path and what.distribution and self.name == "uv":
                # Else what uv built of that folder before would do.
                words += ["--reinstall-package", what.distribution]
            self._run([*words, "--", what.what], f"{what.what} cannot be installed")

    def remove(self, distribution: str) -> None:
        """Remove it. Raises GPUStackError with one line."""
        sure = () if self.name == "uv" else ("--yes",)
        self._run(
            ["uninstall", *self.options, *sure, "--", distribution], f"{distribution} cannot be removed"
        )

    def _run(self, words: Iterable[str], problem: str) -> None:
        from gpustack.cli.entry import debugging
        from gpustack.worker.artifacts.pipx import explain_failure

        done = subprocess.run(
            [*self.command, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_QUIET},
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        if debugging():
            sys.stderr.write(said)
        if done.returncode != 0:
            raise GPUStackError(f"{problem}: {self.name} says: {explain_failure(said)[0]}")


def installer() -> Installer:
    """Return what installs into this environment. Raises Conflict with one line when nothing does."""
    _refuse_foreign()
    python = sys.executable
    if _has_pip(python):
        return Installer(name="pip", command=(python, "-P", "-m", "pip"))
    if uv := _uv():
        return Installer(name="uv", command=(uv, "pip"), options=("--python", python))
    base = str(getattr(sys, "_base_executable", "") or "")
    if base and base != python and _has_pip(base):
        # An environment made without pip, as by scripts/install.sh.
        return Installer(name="pip", command=(base, "-P", "-m", "pip", "--python", python))
    raise Conflict(
        f"plugins are installed into {sys.prefix} by pip or uv, and neither is here: put uv on the PATH, "
        f"or run `{python} -m ensurepip`"
    )


def _refuse_foreign() -> None:
    place = Path(sysconfig.get_path("purelib"))
    marker = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if sys.prefix == sys.base_prefix and marker.exists():
        raise Conflict(
            f"the Python in {sys.prefix} is managed by the system, which installs and removes its packages itself; "
            "install GPUStack into an environment of its own to have plugins there"
        )
    if not os.access(place, os.W_OK):
        raise Conflict(f"{place} cannot be written by you; run this as its owner")


def _has_pip(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-P", "-m", "pip", "--version"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _uv() -> str | None:
    """Return uv: the first on PATH, or that of the clone this environment belongs to."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path(sys.prefix).parent / ".tools/uv/bin"))


def _name_in(path: Path) -> str:
    """Return the name of the distribution at ``path``, empty when it is not written where it can be read at once."""
    if path.is_file():
        # Both kinds begin with the name, which has no hyphen itself in a wheel's.
        stem = path.name.removesuffix(".tar.gz")
        return canonical(path.name.split("-")[0] if stem == path.name else stem.rpartition("-")[0])
    with suppress(OSError, ValueError, KeyError, TypeError):
        return canonical(tomllib.loads((path / "pyproject.toml").read_text("utf-8"))["project"]["name"])
    return ""
