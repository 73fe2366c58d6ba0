"""The one data path: an inference request comes in, the answer of an engine goes out.

It knows nothing of databases or frameworks. What it serves is an immutable :class:`RoutingTable`; whoever runs it
(the server now) replaces that value when something changes. :class:`InferenceApp` is the whole of it: an ASGI
application for the paths below ``/v1``.
"""

from gpustack.dataplane.app import InferenceApp
from gpustack.dataplane.choose import Balancer
from gpustack.dataplane.upstream import ConnectFailed, Upstream, UpstreamDied
from gpustack.plugin.routing import Principal, Route, RoutingTable, Target

__all__ = [
    "Balancer",
    "ConnectFailed",
    "InferenceApp",
    "Principal",
    "Route",
    "RoutingTable",
    "Target",
    "Upstream",
    "UpstreamDied",
]
