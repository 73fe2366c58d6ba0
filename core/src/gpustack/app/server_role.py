"""The server's composition: from plain settings to :func:`gpustack.server.app.run_server`."""

from __future__ import annotations

import os
import socket
from typing import Any

from gpustack import __version__
from gpustack.app.parent import Parent
from gpustack.app.sharing import cors_of, limits_of, tls_of
from gpustack.extensions import load_catalogue
from gpustack.kit.live import Live
from gpustack.kit.net import LOOPBACK
from gpustack.server.app import Listeners, run_server
from gpustack.server.config import ServerConfig, Tunables
from gpustack.settings.model import Settings


async def run(configuration: dict[str, Any], sockets: dict[str, socket.socket], parent: Parent) -> None:
    """Be the server until cancelled."""
    settings = Settings.model_validate(configuration["settings"])
    tunables = Live(tunables_of(settings))
    parent.on_reload = lambda new: tunables.change(tunables_of(Settings.model_validate(new["settings"])))
    config = ServerConfig(
        data_dir=settings.data_dir,
        bin_dir=settings.bin_dir,
        version=__version__,
        bootstrap_password=settings.bootstrap_password,
        registration_token=settings.token,
        disable_openapi_docs=settings.disable_openapi_docs,
        replace_after=settings.replace_after,
        tunables=tunables,
        own_addresses=frozenset({LOOPBACK, configuration["address"]}),
        gateway_mark=configuration.get("mark", ""),
        gateway=settings.gateway,
        urls=tuple(configuration["urls"]),
        limits=limits_of(settings.model_dump()),
        ray_ports={
            "gcs": settings.ray_port,
            "client": settings.ray_client_server_port,
            "dashboard": settings.ray_dashboard_port,
        },
    )
    supervisor = os.getppid()
    await run_server(
        config,
        configuration["database_url"],
        load_catalogue(given=settings.plugins),
        # With a gateway before it, the server has no public port.
        Listeners(
            plain=tuple(sockets[name] for name in ("http", "api") if name in sockets),
            tls=sockets.get("https"),
        ),
        parent.ready,
        alone=lambda: os.getppid() != supervisor,
    )


def tunables_of(settings: Settings) -> Tunables:
    """Return what of the settings is applied without a restart."""
    plain = settings.model_dump()
    return Tunables(
        cors=cors_of(plain),
        tls=tls_of(plain),
        update_check_url="" if settings.disable_update_check else settings.update_check_url,
        effective=settings.effective,
    )
