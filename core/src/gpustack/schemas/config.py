"""The settings of a server."""

from __future__ import annotations

from typing import Any

from gpustack.schemas.common import Output


class OptionPublic(Output):
    """One option of ``gpustack start``. ``value`` is ``***`` for a secret that is set."""

    name: str
    value: Any = None
    default: Any = None
    #: The flag, the variable, or the file with its line; empty for the default.
    origin: str = ""
    group: str = ""
    #: The plugin that brings it; empty is the core.
    plugin: str = ""
    secret: bool = False
    #: Another value is applied by `gpustack config reload`; else it takes a restart.
    reload: bool = False


class ConfigPublic(Output):
    """The answer of ``GET /v2/config``."""

    items: list[OptionPublic]
