"""The effective settings as people and the API may see them: without secrets, each with where it came from."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gpustack.settings.declared import Declared
from gpustack.settings.kinds import PortRange
from gpustack.settings.load import Loaded, without_password

#: What stands in the place of a secret that is set.
HIDDEN = "***"


def shown(loaded: Loaded) -> list[dict[str, Any]]:
    """Return each option with ``name``, ``value``, ``default``, ``origin``, ``group``, ``plugin``, ``secret`` and ``reload``.

    ``origin`` names the flag, the variable, or the file with its line; it is empty for a default. ``reload`` tells whether
    another value is applied without a restart.
    """
    return [
        {
            "name": option.name,
            "value": _visible(option, loaded.value(option.name)),
            "default": _visible(option, option.default),
            "origin": _origin(loaded, option.name),
            "group": option.group,
            "plugin": option.plugin,
            "secret": option.secret,
            "reload": option.reload,
        }
        for option in loaded.options.values()
    ]


def _origin(loaded: Loaded, name: str) -> str:
    item = loaded.given.get(name)
    if item is None and name == "token":
        item = loaded.given.get("token_file")
    return "" if item is None else item.origin


def _visible(option: Declared, value: Any) -> Any:
    if option.secret and value:
        text = str(value)
        # Where the database is, is no secret.
        return without_password(text) if option.name == "database_url" else HIDDEN
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, PortRange):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list | set | frozenset):
        return [_visible(option, each) for each in value]
    if isinstance(value, dict):
        return {str(key): _visible(option, each) for key, each in value.items()}
    if isinstance(value, Enum):
        return _visible(option, value.value)
    # Of a plugin's default nobody knows what it is.
    return value if value is None or isinstance(value, bool | int | float) else without_password(str(value))


def as_text(value: Any) -> str:
    """Return a value of :func:`shown` as one line, empty for none."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else " ".join(value.split())
    return json.dumps(value)
