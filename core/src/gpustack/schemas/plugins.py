"""Installed plugins."""

from __future__ import annotations

from gpustack.schemas.common import Output


class PluginPublic(Output):
    """One extension that a plugin brings. ``version`` is that of its distribution."""

    kind: str
    name: str
    plugin: str
    distribution: str
    version: str


class PluginFailurePublic(Output):
    """A plugin, or a part of one, that cannot be used, and at which stage of loading that showed."""

    plugin: str
    distribution: str
    version: str
    stage: str
    error: str


class PluginStatePublic(Output):
    """One plugin: ``loaded``, ``partly``, ``failed`` or ``blocked``, and why."""

    name: str
    distribution: str
    version: str
    state: str
    reason: str


class PluginsPublic(Output):
    """Everything that was found."""

    items: list[PluginPublic]
    failures: list[PluginFailurePublic]
    plugins: list[PluginStatePublic] = []
