"""The gateways of GPUStack.

The embedded one is the core's own data path, run as processes beside the server; this package brings the options that all
gateways share. One inside a Kubernetes cluster (``in_cluster``) and one that is already there (``external``) will live
here, each in a module of its own, built on nothing of the core but ``gpustack.plugin``.
"""

from __future__ import annotations

from pydantic import BaseModel

from gpustack.plugin import hookimpl
from gpustack_gateway.options import GatewaySettings


@hookimpl
def register_settings() -> list[type[BaseModel]]:
    """Bring the options that the gateways share."""
    return [GatewaySettings]
