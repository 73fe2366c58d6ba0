"""What the handlers of the API work with, made once by the composition in :mod:`gpustack.server.app`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from gpustack.dataplane import Upstream
from gpustack.db import Feed, Store
from gpustack.extensions import BundledModels, Catalogue
from gpustack.schemas import ClusterPublic
from gpustack.server.auth.authenticate import Authenticator
from gpustack.server.auth.caller import Req
from gpustack.server.auth.passwords import Passwords
from gpustack.server.auth.throttle import Throttle
from gpustack.server.config import ServerConfig
from gpustack.server.explaining import Explainer
from gpustack.server.fleet import FleetNews
from gpustack.server.gateway_plugin import Front
from gpustack.server.heartbeats import Heartbeats
from gpustack.server.planning import Planning
from gpustack.server.routing import Routing
from gpustack.server.updates import UpdateCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of a running server."""

    config: ServerConfig
    store: Store
    feed: Feed
    catalogue: Catalogue
    bundled: BundledModels
    routing: Routing
    authenticator: Authenticator
    heartbeats: Heartbeats
    upstream: Upstream
    updates: UpdateCheck
    explainer: Explainer
    #: Gets the name of the first background task that ends by itself, which none may.
    broken: asyncio.Future[str]
    front: Front = field(default_factory=Front)
    planning: Planning = field(default_factory=Planning)
    passwords: Passwords = field(default_factory=Passwords)
    #: Wrong passwords by user name and address, and by address alone.
    by_user: Throttle = field(default_factory=Throttle)
    by_address: Throttle = field(default_factory=lambda: Throttle(free=30))
    fleet: FleetNews = field(default_factory=FleetNews)
    #: Registrations take turns in the database. A fleet that comes back at once waits here for that, and not with all
    #: connections in hand that its watches and signs of life need.
    registering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    #: Set when the server ends, so that endless answers end too.
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def default_cluster(self) -> ClusterPublic:
        """Return the cluster that takes what names none."""
        return await self.store.clusters.default()


def services(request: Req | Any) -> Services:
    """Return the parts of the server that answers ``request``."""
    found: Services = request.app.state.services
    return found
