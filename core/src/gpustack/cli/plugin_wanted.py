"""What ``gpustack plugins install`` is asked for."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpustack.cli.usage import WrongUsage
from gpustack.kit.text import shorten

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAMED = re.compile(rf"({_NAME})(?:==[0-9A-Za-z][0-9A-Za-z.!+_-]*)?")
#: A path, and the extras that are wanted of the project there.
_WITH_EXTRAS = re.compile(rf"(.+?)(\[ *{_NAME}(?: *, *{_NAME})* *\])", re.DOTALL)
_ARCHIVES = (".whl", ".tar.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be installed: as the installer is told, and the distribution's name, empty when that is not known."""

    what: str
    distribution: str
    path: bool
    #: What is changed in the project's folder afterwards is used as it is.
    editable: bool = False


def wanted(text: str, *, editable: bool = False) -> Wanted:
    """Understand ``NAME``, ``NAME==VERSION``, or the path of a wheel, an archive or a project, also as ``PATH[EXTRA]``.

    What is ``editable`` is always the folder of a project. Raises WrongUsage.
    """
    if not editable and (found := _NAMED.fullmatch(text)):
        if not text.endswith(_ARCHIVES):
            return Wanted(what=text, distribution=canonical(found[1]), path=False)
    elif text.startswith("-") or "://" in text or not text.strip():
        raise WrongUsage(f"{shorten(text, 160)!r} is not NAME, NAME==VERSION or a path")
    path, extras = Path(text).expanduser(), ""
    if not path.exists() and (found := _WITH_EXTRAS.fullmatch(text)):
        path, extras = Path(found[1]).expanduser(), found[2]
    if not path.exists():
        looks_like_path = "/" in text or text.endswith(_ARCHIVES) or text.startswith(("~", "."))
        why = "is not there" if looks_like_path else "is not NAME, NAME==VERSION or a path"
        raise WrongUsage(f"{shorten(text, 160)!r} {why}")
    if path.is_dir() and not ((path / "pyproject.toml").is_file() or (path / "setup.py").is_file()):
        raise WrongUsage(f"{text} is no Python project: it has no pyproject.toml")
    if path.is_file() and not path.name.endswith(_ARCHIVES):
        raise WrongUsage(f"{text} is no wheel (.whl) and no source archive (.tar.gz)")
    if path.is_file():
        _refuse_rubbish(path, text, editable=editable)
    return Wanted(
        what=f"{path.absolute()}{extras}", distribution=_name_in(path), path=True, editable=editable
    )


def canonical(name: str) -> str:
    """Return a distribution's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _refuse_rubbish(path: Path, text: str, *, editable: bool) -> None:
    """Raise WrongUsage for a file that is not what its name says; pip's words for that are a traceback."""
    if editable:
        raise WrongUsage(f"--editable takes the folder of a project, and {text} is a file")
    try:
        wheel = path.name.endswith(".whl")
        good = zipfile.is_zipfile(path) if wheel else tarfile.is_tarfile(path)
    except OSError as error:
        raise WrongUsage(f"{text} cannot be read: {error.strerror}") from error
    if not good:
        raise WrongUsage(f"{text} is no {'wheel' if wheel else 'source archive'}, whatever its name says")


def _name_in(path: Path) -> str:
    """Return the name of the distribution at ``path``, empty when it is not written where it can be read at once."""
    if path.is_file():
        # Both kinds begin with the name, which has no hyphen itself in a wheel's.
        stem = path.name.removesuffix(".tar.gz")
        return canonical(path.name.split("-")[0] if stem == path.name else stem.rpartition("-")[0])
    with suppress(OSError, ValueError, KeyError, TypeError):
        return canonical(tomllib.loads((path / "pyproject.toml").read_text("utf-8"))["project"]["name"])
    return ""
