"""The gateways of GPUStack, each a plugin like anybody else's.

What carries inference requests to the engines will live here: a gateway that GPUStack runs itself (``embedded``), one
inside a Kubernetes cluster (``in_cluster``) and one that is already there (``external``), each in a module of its own,
built on nothing of the core but ``gpustack.plugin``. None is written yet: the package brings their options. Until then the
server process carries the requests itself, in every mode that is offered.
"""

from __future__ import annotations

from pydantic import BaseModel

from gpustack.plugin import hookimpl
from gpustack_gateway.options import GatewaySettings


@hookimpl
def register_settings() -> list[type[BaseModel]]:
    """Bring the options that the gateways share."""
    return [GatewaySettings]
