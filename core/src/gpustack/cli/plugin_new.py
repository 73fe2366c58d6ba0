"""Writes a new plugin from the templates that come with the core.

A template is a folder below ``gpustack/templates``, whose name is the kind. Its files end in ``.template``, which is
left out; ``{{name}}`` and the like stand for what differs, in the files' names too.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from gpustack.cli.usage import WrongUsage
from gpustack.kit.errors import Conflict, GPUStackError, system_line
from gpustack.kit.text import shorten

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_SUFFIX = ".template"
#: What a distribution's name begins with.
_PREFIX = "gpustack-"
#: The distributions of GPUStack itself, without that.
_OURS = frozenset(("core", "backends", "auth", "gateway", "system", "demo-model", "llama-server"))


def kinds() -> list[str]:
    """Return the kinds of plugin that there are templates of."""
    return sorted(each.name for each in _templates().iterdir() if each.is_dir())


def write(kind: str, name: str, directory: Path) -> Path:
    """Write a plugin of ``kind`` into the folder ``name`` of ``directory``, all or nothing; return the folder.

    Raises WrongUsage for a kind without template or a name that cannot be one, Conflict when the folder is there.
    """
    if kind not in kinds():
        raise WrongUsage(f"there is no template of {shorten(kind, 80)!r}; there are: {', '.join(kinds())}")
    values = values_of(kind, name)
    directory = directory.expanduser()
    folder = directory / name
    if folder.exists() or folder.is_symlink():
        raise Conflict(f"{folder} is there already; choose another name or --directory")
    if not directory.is_dir():
        raise WrongUsage(f"--directory: there is no folder {directory}")
    try:
        half = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
        try:
            for path, text in rendered(kind, values).items():
                (half / path).parent.mkdir(parents=True, exist_ok=True)
                (half / path).write_text(text, encoding="utf-8")
            # A temporary folder is its maker's alone; this one is to be like any other.
            half.chmod(0o777 & ~_umask())
            half.rename(folder)
        except BaseException:
            shutil.rmtree(half, ignore_errors=True)
            raise
    except OSError as error:
        raise GPUStackError(system_line(error)) from error
    return folder


def values_of(kind: str, name: str) -> dict[str, str]:
    """Return what the placeholders stand for. Raises WrongUsage for a name that cannot be one."""
    import gpustack.plugin

    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise WrongUsage(
            f"{shorten(name, 80)!r} cannot be a plugin's name: take lower-case letters and digits, with a hyphen between "
            f"words, such as acme-turbo (at most {_LONGEST} characters)"
        )
    words = name.split("-")
    cls = "".join(word.capitalize() for word in words)
    if (
        name.startswith("gpustack")
        or f"{cls}{_class_suffix(kind)}" in gpustack.plugin.__all__
        or _is_ours(name)
    ):
        raise WrongUsage(f"{name} is a name of GPUStack's own; take that of your engine or service")
    return {
        "name": name,
        "distribution": f"{_PREFIX}{name}",
        "package": f"gpustack_{name.replace('-', '_')}",
        "class": cls,
        "title": " ".join(word.capitalize() for word in words),
        "variable": name.replace("-", "_"),
        "environment": name.replace("-", "_").upper(),
        "api_version": gpustack.plugin.API_VERSION,
    }


def rendered(kind: str, values: dict[str, str]) -> dict[str, str]:
    """Return the text of each file of a new plugin by its path."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Traversable]] = [("", _templates() / kind)]
    while waiting:
        path, folder = waiting.pop()
        for each in folder.iterdir():
            inner = f"{path}{each.name}"
            if each.is_dir():
                waiting.append((f"{inner}/", each))
            elif inner.endswith(_SUFFIX):
                found[_filled(inner.removesuffix(_SUFFIX), values)] = _filled(each.read_text("utf-8"), values)
    return dict(sorted(found.items()))


def _filled(text: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found[1]], text)


def _is_ours(name: str) -> bool:
    """Tell whether a plugin or a distribution of ours, installed here or not, is called so already."""
    from gpustack.cli.plugin_environment import own, plugins_now
    from gpustack.cli.plugin_wanted import canonical

    ours = own()
    plugins = {plugin for plugin, distribution, _ in plugins_now() if canonical(distribution) in ours}
    return name in _OURS or name in plugins or f"{_PREFIX}{name}" in ours


def _class_suffix(kind: str) -> str:
    return {
        "backend": "Backend",
        "detector": "Detector",
        "login": "Login",
        "gateway": "Gateway",
        "web": "App",
    }.get(kind, "")


def _templates() -> Traversable:
    return files("gpustack") / "templates"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
