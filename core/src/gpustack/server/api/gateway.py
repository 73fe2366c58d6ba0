"""``/v2/gateway``: what carries the requests, and how it is."""

from __future__ import annotations

from pathlib import Path

from litestar import Response, get

from gpustack.schemas.gateway import GatewayProcessPublic, GatewayPublic
from gpustack.server.auth.caller import Req
from gpustack.server.body import one
from gpustack.server.gateway_plugin import Seen
from gpustack.server.services import Services, services


@get("/gateway", tags=["Gateway"])
async def get_gateway(request: Req) -> Response[GatewayPublic]:
    """Return the gateway that `--gateway-mode` has chosen, where it is reached, and whether it serves."""
    return one(describe(services(request)))


def describe(found: Services) -> GatewayPublic:
    """Return what is known of the gateway, as it was last seen: nobody waits for a plugin."""
    config, front, version = found.config, found.front, found.routing.table.version
    if front.life is None:
        urls = list(config.urls)
        return GatewayPublic(
            name="disabled", public_urls=urls, healthy=True, version=version, version_applied=version
        )
    seen: Seen = front.life.seen
    return GatewayPublic(
        name=config.gateway.name,
        public_urls=list(seen.public_urls),
        healthy=seen.health.ok,
        reason=seen.health.reason,
        version=version,
        version_applied=seen.applied,
        processes=[
            # Arguments may hold secrets.
            GatewayProcessPublic(kind=each.kind, program=Path(each.argv[0]).name if each.argv else "")
            for each in config.gateway.processes
        ],
        connected=[] if front.data_path is None else front.data_path.pids,
    )


HANDLERS = [get_gateway]
