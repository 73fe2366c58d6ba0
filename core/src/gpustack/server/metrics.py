"""``/metrics``: what the gateways of this machine have counted, for Prometheus."""

from __future__ import annotations

import asyncio

from litestar import get

from gpustack.dataplane.metering.exposition import render
from gpustack.server.auth.caller import Req
from gpustack.server.services import services


@get("/metrics", tags=["Probes"], media_type="text/plain; version=0.0.4")
async def metrics(request: Req) -> str:
    """Return the figures of all gateway processes, summed up. An administrator's key is needed."""
    folder = services(request).config.data_dir / "run" / "gateway" / "metrics"
    return await asyncio.to_thread(render, folder)


HANDLERS = [metrics]
