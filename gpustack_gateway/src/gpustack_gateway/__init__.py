"""The gateways of GPUStack.

The embedded one declares processes of the core's own data path; ``options`` has what all gateways share. One inside a
Kubernetes cluster (``in_cluster``) and one that is already there (``external``) will live here, each in a module of its own,
built on nothing of the core but ``gpustack.plugin``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from gpustack.plugin import Gateway, hookimpl
from gpustack_gateway.embedded import EmbeddedGateway
from gpustack_gateway.options import GatewaySettings


@hookimpl
def register_gateways() -> list[type[Gateway[Any]]]:
    """Bring the gateways."""
    return [EmbeddedGateway]


@hookimpl
def register_settings() -> list[type[BaseModel]]:
    """Bring the options that the gateways share."""
    return [GatewaySettings]
