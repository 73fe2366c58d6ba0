"""The embedded gateway: processes of GPUStack's own data path on ``--port``, the default outside Kubernetes.

Their sockets, the table that they serve by and the records that they write are GPUStack's own business
(:class:`~gpustack.plugin.DataPathProcess`), so that nothing of a plugin stands between a change and a request. What is left
to say is how many there are to be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from gpustack.plugin import (
    DataPathProcess,
    Gateway,
    GatewayHost,
    Option,
    RoutingDelta,
    RoutingTable,
    Verdict,
)


class EmbeddedGatewaySettings(BaseModel):
    """What the embedded gateway can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway_concurrency: Annotated[
        int,
        Field(ge=1, le=1024),
        Option(
            group="Common",
            value="N",
            help="The most gateway processes there may be; there are never more than cores.",
        ),
    ] = 16


class EmbeddedGateway(Gateway[EmbeddedGatewaySettings]):
    """As many processes as there are cores, and no more than ``--gateway-concurrency``."""

    name = "embedded"
    settings_type = EmbeddedGatewaySettings

    def __init__(self, settings: EmbeddedGatewaySettings, host: GatewayHost) -> None:
        super().__init__(settings, host)
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        self._open = False

    @property
    def public_urls(self) -> Sequence[str]:
        """Return GPUStack's own addresses."""
        return self.host.urls if self._open else ()

    def processes(self) -> Sequence[DataPathProcess]:
        """Return one for each core that this program may use, within the option."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return [DataPathProcess()] * max(1, min(self.settings.gateway_concurrency, cores))

    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        """Do nothing: GPUStack tells its processes."""

    async def health(self) -> Verdict:
        """Return how the processes are."""
        return self.host.data_path() if self._open else Verdict.no("the embedded gateway is not entered")
