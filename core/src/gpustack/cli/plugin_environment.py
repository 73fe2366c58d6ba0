"""The Python environment that GPUStack runs from, and installing distributions into it or removing them."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpustack.cli.plugin_said import explained, of_pip, of_uv
from gpustack.cli.plugin_wanted import Wanted, canonical
from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import Conflict, GPUStackError, NotFound
from gpustack.kit.text import shorten

_GROUP = "gpustack"
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


def distributions_now() -> dict[str, str]:
    """Return the names of all distributions that are installed, as they are compared, with their versions."""
    importlib.invalidate_caches()
    return {canonical(each.name): each.version for each in importlib.metadata.distributions() if each.name}


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

    def install(self, what: Wanted) -> set[str]:
        """Install it and return the names of the distributions that came or changed.

        What GPUStack itself needs stays as it is: Conflict when that would have to be replaced, even by something of
        the same name and version. Raises GPUStackError with one line when the installer fails.
        """
        ours = own()
        if what.distribution in ours:
            raise _taken(what, {what.distribution}, ours)
        problem = f"{what.what} cannot be installed"
        with tempfile.TemporaryDirectory(prefix="gpustack-") as folder:
            kept = Path(folder, "constraints.txt")
            kept.write_text("".join(f"{name}=={version}\n" for name, version in ours.items()))
            words = [*self.options, "--constraint", str(kept)]
            if what.path and what.distribution and self.name == "uv":
                # Else what uv built of that folder before would do.
                words += ["--reinstall-package", what.distribution]
            words += ["--editable", what.what] if what.editable else ["--", what.what]
            changed = self._looked_ahead(words, problem, Path(folder, "report.json"))
            if taken := changed & ours.keys():
                raise _taken(what, taken, ours)
            self._run(["install", *words], problem)
        return changed

    def remove(self, *distributions: str) -> None:
        """Remove them. Raises GPUStackError with one line."""
        sure = () if self.name == "uv" else ("--yes",)
        names = ", ".join(distributions)
        self._run(["uninstall", *self.options, *sure, "--", *distributions], f"{names} cannot be removed")

    def words_for(self, requirement: str) -> str:
        """Return the command for a shell that installs ``requirement``."""
        return shlex.join([*self.command, "install", *self.options, requirement])

    def _looked_ahead(self, words: Iterable[str], problem: str, report: Path) -> set[str]:
        """Return the distributions that an installation would bring or change."""
        telling = () if self.name == "uv" else ("--report", str(report))
        said = self._run(["install", "--dry-run", *telling, *words], problem)
        return {canonical(each) for each in (of_uv(said) if self.name == "uv" else of_pip(report))}

    def _run(self, words: Iterable[str], problem: str) -> str:
        from gpustack.cli.entry import debugging

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
            raise GPUStackError(f"{problem}: {self.name} says: {explained(said)}")
        return said


def _taken(what: Wanted, taken: Collection[str], ours: Mapping[str, str]) -> Conflict:
    """Return what is wrong with what would replace ``taken``."""
    if what.distribution in taken:
        own_name = f"{what.distribution} is the name of a part of GPUStack, or of what it needs"
        advice = "it is here, and stays as it is"
        return Conflict(f"{own_name}: " + ("give the plugin another name" if what.path else advice))
    names = ", ".join(f"{name} {ours[name]}" for name in sorted(taken))
    return Conflict(
        f"{what.what} would replace {names}, which GPUStack needs as it is; nothing was installed"
    )


def how_to_get_pytest() -> str:
    """Return the command that puts pytest into GPUStack's own environment, or why there is none."""
    from packaging.requirements import Requirement

    asked = [Requirement(text) for text in importlib.metadata.requires(_ROOTS[-1]) or ()]
    wanted_here = next((f"{each.name}{each.specifier}" for each in asked if each.name == "pytest"), "pytest")
    try:
        return f"install it with `{installer().words_for(wanted_here)}`"
    except Conflict as error:
        return error.message


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
