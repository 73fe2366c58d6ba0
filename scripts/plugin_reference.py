"""The reference of the plugin API as Markdown, read off ``gpustack.plugin``: hooks, contracts, values, errors."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from gpustack import plugin
from gpustack.plugin import hookspecs

_FIELD = re.compile(r"^    (?P<name>[a-z_]\w*): (?P<type>[^=\n]+?)(?: = (?P<default>.+))?$")
_HEAD = """\
# The plugin API

<!-- Made by `make docs` from the docstrings of `gpustack.plugin`; a test fails when it is stale. -->

Everything here is imported from `gpustack.plugin`, version {version}. A plugin may say in its module for which version it was
written, `plugin_api_version = "{version}"`: GPUStack then refuses to load it where that does not fit, with a line that says so.
What is called experimental may change until a release says otherwise.

Its distribution names the module under the entry-point group `gpustack`. `GPUSTACK_PLUGINS_BLOCK=NAME,NAME` keeps plugins
from being loaded. A plugin that cannot be loaded is shown with its reason by `gpustack plugins list`; all others work."""


def page() -> str:
    """Return the whole page."""
    named = {name: getattr(plugin, name) for name in plugin.__all__}
    classes = {name: each for name, each in named.items() if inspect.isclass(each)}
    contracts = {name: each for name, each in classes.items() if issubclass(each, plugin.Extension)}
    errors = {name: each for name, each in classes.items() if issubclass(each, Exception)}
    values = {
        name: each for name, each in classes.items() if is_dataclass(each) and name not in contracts | errors
    }
    parts = [_HEAD.format(version=plugin.API_VERSION), "## Hooks"]
    parts += [_hook(name, each) for name, each in hooks().items()]
    parts.append("## Contracts")
    parts += [_class(name, each, methods=True) for name, each in contracts.items()]
    shared = {
        name: each
        for name, each in classes.items()
        if name not in contracts and (inspect.isabstract(each) or getattr(each, "_is_protocol", False))
    }
    parts += [_class(name, each, methods=True) for name, each in shared.items()]
    parts.append("## Values")
    parts += [_class(name, each, methods=False) for name, each in values.items()]
    parts += [_choices(name, each) for name, each in classes.items() if issubclass(each, Enum)]
    parts.append("## Errors")
    parts += [f"### {name}\n\n{_doc(each)}" for name, each in errors.items()]
    return "\n\n".join(parts) + "\n"


def hooks() -> dict[str, Any]:
    """Return every hook by its name."""
    return {
        name: each
        for name, each in vars(hookspecs).items()
        if inspect.isfunction(each) and hasattr(each, "gpustack_spec")
    }


def _hook(name: str, function: Any) -> str:
    return f"### {name}\n\n```python\n@hookimpl\ndef {name}() -> {_returns(function)}: ...\n```\n\n{_doc(function)}"


def _returns(function: Any) -> str:
    return str(inspect.signature(function).return_annotation)


def _class(name: str, cls: type, *, methods: bool) -> str:
    parts = [f"### {name}", _doc(cls)]
    if rows := list(_fields(cls)):
        parts.append("\n".join(["| field | type | default | |", "| --- | --- | --- | --- |", *rows]))
    if methods:
        parts += [
            _method(each, function) for each, function in vars(cls).items() if _is_public(each, function)
        ]
    return "\n\n".join(parts)


def _choices(name: str, enum: type[Enum]) -> str:
    """Return its members, each with the comment that stands above it."""
    comment, rows = "", ["| value | |", "| --- | --- |"]
    for line in textwrap.dedent(inspect.getsource(enum)).splitlines():
        stripped = line.strip()
        if stripped.startswith("#:"):
            comment = stripped.removeprefix("#:").strip()
        elif found := re.match(r"(\w+) = ", stripped):
            rows.append(f"| `{name}.{found[1]}` | {comment} |")
            comment = ""
    return "\n\n".join([f"### {name}", _doc(enum), "\n".join(rows)])


def _is_public(name: str, member: Any) -> bool:
    shown = not name.startswith("_") or name in ("__aenter__", "__aexit__")
    return shown and (inspect.isfunction(member) or isinstance(member, property))


def _method(name: str, member: Any) -> str:
    function = member.fget if isinstance(member, property) else member
    kind = "property " if isinstance(member, property) else ""
    kind += "async " if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) else ""
    required = " *(required)*" if getattr(function, "__isabstractmethod__", False) else ""
    signature = str(inspect.signature(function)).replace("'", "")
    return f"#### `{kind}{name}{signature}`{required}\n\n{_doc(function)}"


def _fields(cls: type) -> Iterator[str]:
    """Yield a row for each annotated field, with the comment that stands above it."""
    comment: list[str] = []
    for line in textwrap.dedent(inspect.getsource(cls)).splitlines():
        stripped = line.strip()
        if stripped.startswith("#:"):
            comment.append(stripped.removeprefix("#:").strip())
        elif (found := _FIELD.match(line)) and not line.strip().startswith(("return", "raise")):
            default = (found["default"] or "").removeprefix("field(default_factory=").rstrip(")")
            cells = (found["name"], found["type"], default)
            shown = [f"`{each}`".replace("|", "\\|") if each else "" for each in cells]
            yield f"| {' | '.join(shown)} | {' '.join(comment)} |"
            comment = []
        elif stripped.startswith(("def ", "async def ", "@")):
            return


def _doc(thing: Any) -> str:
    text = inspect.getdoc(thing) or ""
    # Docstrings are reStructuredText: roles and double backquotes become Markdown's.
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`")
