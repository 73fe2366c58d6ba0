"""What a check does inside its process: loads the plugin, and makes a test class for each extension that it brings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from gpustack.cli.plugin_reporter import LABELS, tell, tell_result

if TYPE_CHECKING:
    from gpustack.extensions import Catalogue


def contracts(plugin: str, database_url: str, suites: Mapping[str, type[Any]]) -> dict[str, type[Any]]:
    """Return the test classes by name; what does not work at all is told to the report.

    The plugin is loaded by itself first: who ends or holds the process then is known.
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
