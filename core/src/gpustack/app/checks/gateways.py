"""The gateway that the settings name."""

from __future__ import annotations

from collections.abc import Iterator

from gpustack.app.checks.finding import Finding
from gpustack.app.chosen_gateway import AUTO, DISABLED, EMBEDDED, unknown
from gpustack.extensions import load_catalogue
from gpustack.settings.load import Loaded


def mode(loaded: Loaded) -> Iterator[Finding]:
    """Check that the gateway is installed. Ours is looked at when it is used; plugins are not loaded twice for it."""
    if "gateway_mode" not in loaded.options:
        return
    name = loaded.value("gateway_mode")
    if name in (AUTO, DISABLED, EMBEDDED):
        return
    catalogue = load_catalogue()
    if name not in catalogue.gateways:
        text = f"{loaded.origin('gateway_mode')}: {unknown(name, catalogue)}"
        yield Finding(level="problem", options=("gateway_mode",), text=text)
