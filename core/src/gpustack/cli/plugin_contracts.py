"""What a check does inside its process: loads the plugin, and makes a test class for each extension that it brings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.cli.plugin_reporter import LABELS, tell, tell_result

if TYPE_CHECKING:
    from gpustack.extensions import Catalogue, Registered


def contracts(
    plugin: str, database_url: str, suites: Mapping[str, type[Any]], traffic: type[Any], *, always: bool
) -> dict[str, type[Any]]:
    """Return the test classes by name; what does not work at all is told to the report.

    The plugin is loaded by itself first: who ends or holds the process then is known. ``traffic`` is the suite for gateways
    that run, ``always`` whether that is to be so for those, too, that have programs of their own.
    """
    from gpustack.extensions import load_catalogue

    tell("begins", (plugin, "it can be loaded"))
    load_catalogue([each for each in entry_points(group="gpustack") if each.name == plugin])
    tell("begins", ("the other plugins", "they can be loaded beside it"))
    catalogue = load_catalogue()
    tell("begins", (plugin, "it can be examined"))
    broken = [each for each in catalogue.failures if each.plugin == plugin]
    for each in broken:
        tell_result(plugin, f"{each.stage} works", why=each.error)
    classes = _classes(catalogue, plugin, database_url, suites)
    for gateway in catalogue.gateways.values():
        if gateway.plugin == plugin and (always or _is_data_path(catalogue, gateway)):
            name = f"Test_traffic_{gateway.name}"
            LABELS[name] = f"traffic through {gateway.name}"
            classes[name] = type(name, (traffic,), {"extension": gateway.cls})
    if not classes and not broken:
        has_options = plugin in catalogue.options.models.values()
        tell_result(plugin, "it brings something", why=None if has_options else _NOTHING)
    return classes


_NOTHING = (
    "it loads and brings nothing: a function such as register_inference_backends returns the list of its classes, and "
    "@hookimpl of gpustack.plugin stands above it"
)


def _classes(
    catalogue: Catalogue, plugin: str, database_url: str, suites: Mapping[str, type[Any]]
) -> dict[str, type[Any]]:
    from gpustack.extensions.kinds import KINDS

    classes: dict[str, type[Any]] = {}
    for kind in KINDS:
        for each in getattr(catalogue, kind.field).values():
            if each.plugin == plugin:
                name = f"Test_{kind.field}_{each.name}"
                LABELS[name] = f"{kind.label} {each.name}"
                about = {"extension": each.cls}
                if kind.field == "databases":
                    about["database_url"] = database_url
                classes[name] = type(name, (suites[kind.field],), about)
    return classes


def _is_data_path(catalogue: Catalogue, gateway: Registered[Any]) -> bool:
    """Tell whether all of it is GPUStack's data path, which runs beside another one: on ports that are free."""
    from gpustack.plugin import DataPathProcess, GatewayHost

    here = Path.cwd()
    host = GatewayHost(log=logging.getLogger(f"plugin.{gateway.name}"), data_dir=here, bin_dir=here)
    try:
        processes = list(catalogue.make(gateway, host).processes())
    except Exception:  # noqa: BLE001  # the suite of all gateways says it, as what it is
        return False
    return bool(processes) and all(isinstance(each, DataPathProcess) for each in processes)
