"""Which gateway ``--gateway-mode`` means, and what it has to have run; found out where the settings are read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpustack.extensions import Catalogue, Registered
from gpustack.extensions.catalogue import shown
from gpustack.extensions.guard import Guard
from gpustack.extensions.opening import make
from gpustack.kit import local_sockets
from gpustack.kit.errors import SettingsError
from gpustack.plugin import DataPathProcess, Gateway, GatewayHost, LaunchPlan, PluginError
from gpustack.settings.gateway import NO_GATEWAY, ChosenGateway, GatewayProcess
from gpustack.settings.model import Settings

AUTO, DISABLED, EMBEDDED = "auto", "disabled", "embedded"


def choose(settings: Settings, catalogue: Catalogue) -> ChosenGateway:
    """Return the gateway that these settings choose. Raises SettingsError, or PluginError for one that does not work.

    A worker of another server has none. ``auto`` is the embedded one, where its plugin is installed and the system has
    local sockets; else the server carries the requests.
    """
    if settings.server_url:
        return NO_GATEWAY
    name = settings.plugins.get("gateway_mode", AUTO)
    if name == AUTO:
        usable = local_sockets.AVAILABLE and EMBEDDED in catalogue.gateways
        name = EMBEDDED if usable else DISABLED
    if name == DISABLED:
        return NO_GATEWAY
    if (registered := catalogue.gateways.get(name)) is None:
        raise SettingsError(f"--gateway-mode: {unknown(name, catalogue)}")
    given = replace(catalogue, given=settings.plugins)
    return asyncio.run(declared(registered, given, settings))


def unknown(name: str, catalogue: Catalogue) -> str:
    """Return the words for a gateway that is not there: what there is, and which plugin may have had it."""
    known = ", ".join([AUTO, DISABLED, *sorted(catalogue.gateways)])
    failed = [str(each) for each in catalogue.failures]
    return f"there is no gateway {name!r}; give one of {known}" + "".join(f"; {line}" for line in failed)


async def declared(
    registered: Registered[Gateway[Any]], catalogue: Catalogue, settings: Settings
) -> ChosenGateway:
    """Return what this gateway has to have run. Raises PluginError in one line, or SettingsError."""
    what = f"plugin {registered.plugin}: {registered.name}"
    host = GatewayHost(
        log=logging.getLogger(f"plugin.{registered.name}"),
        data_dir=settings.data_dir,
        bin_dir=settings.bin_dir,
    )
    gateway = await make(catalogue, registered, host)
    plans: object = await Guard.call(registered.plugin, gateway.processes)
    if isinstance(plans, str | bytes) or not isinstance(plans, Sequence):
        raise PluginError(f"{what}: processes returned {shown(plans)}; return a sequence, which may be empty")
    chosen = ChosenGateway(name=registered.name, processes=tuple(_process(each, what) for each in plans))
    if chosen.data_path and not local_sockets.AVAILABLE:
        raise SettingsError(
            f"--gateway-mode: {registered.name} needs local sockets, which this system has not; give {DISABLED}"
        )
    return chosen


def _process(plan: object, what: str) -> GatewayProcess:
    if isinstance(plan, DataPathProcess):
        return GatewayProcess()
    if not isinstance(plan, LaunchPlan):
        raise PluginError(f"{what}: processes holds {shown(plan)}; give a LaunchPlan or a DataPathProcess")
    words = (*plan.argv, *plan.env, *plan.env.values(), plan.cwd or "")
    if not plan.argv or not plan.argv[0] or not all(isinstance(word, str) for word in words):
        raise PluginError(
            f"{what}: processes holds a LaunchPlan without a command line, or one that is no text"
        )
    if any("\0" in word for word in words) or any("=" in name or not name for name in plan.env):
        raise PluginError(f"{what}: processes holds a LaunchPlan that no system can run: {shown(plan.argv)}")
    return GatewayProcess(kind="program", argv=tuple(plan.argv), env=dict(plan.env), cwd=plan.cwd)
