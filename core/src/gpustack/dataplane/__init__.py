"""The one data path: an inference request comes in, the answer of an engine goes out.

It knows nothing of databases or frameworks. What it serves is an immutable
:class:`~gpustack.plugin.routing.RoutingTable`; whoever runs it replaces that value when something changes.

- :mod:`~gpustack.dataplane.gateway`: all of it, behind :mod:`~gpustack.dataplane.http`, as the gateway processes run it.
- :mod:`~gpustack.dataplane.choosing`, :mod:`~gpustack.dataplane.admission`, :mod:`~gpustack.dataplane.metering`: its parts.
- :mod:`~gpustack.dataplane.table`: how the table comes from the server.
- :mod:`~gpustack.dataplane.gateway.asgi`: the same inside the server process, where there are no gateway processes.
- :mod:`~gpustack.dataplane.door`: a worker's door.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustack.dataplane.upstream import ConnectFailed, Upstream, UpstreamDied
    from gpustack.plugin.routing import Principal, Route, RoutingTable, Target

#: Where each name is from, loaded on first use: a gateway process takes none of them.
_HOMES = {
    "ConnectFailed": "gpustack.dataplane.upstream",
    "Principal": "gpustack.plugin.routing",
    "Route": "gpustack.plugin.routing",
    "RoutingTable": "gpustack.plugin.routing",
    "Target": "gpustack.plugin.routing",
    "Upstream": "gpustack.dataplane.upstream",
    "UpstreamDied": "gpustack.dataplane.upstream",
}

__all__ = [
    "ConnectFailed",
    "Principal",
    "Route",
    "RoutingTable",
    "Target",
    "Upstream",
    "UpstreamDied",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for on first use (PEP 562)."""
    if (module := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value
