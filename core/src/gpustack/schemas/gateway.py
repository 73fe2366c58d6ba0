"""The gateway of a server."""

from __future__ import annotations

from typing import Literal

from gpustack.schemas.common import Output


class GatewayProcessPublic(Output):
    """One process that the gateway has declared: of GPUStack's data path, or a program of its plugin's, by its command."""

    kind: Literal["data_path", "program"]
    program: str = ""


class GatewayPublic(Output):
    """The answer of ``GET /v2/gateway``. ``name`` is ``disabled`` where the server carries the requests itself."""

    name: str
    #: Where clients reach it.
    public_urls: list[str]
    #: Whether it serves; ``reason`` says why not, or what is not as it should be.
    healthy: bool
    reason: str = ""
    #: The version of the routing table, and the one that the gateway has applied; null before the first.
    version: int
    version_applied: int | None = None
    #: What was declared, and the processes of the data path that are connected with the server.
    processes: list[GatewayProcessPublic] = []
    connected: list[int] = []
