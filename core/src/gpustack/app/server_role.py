"""The server's composition: from plain settings to :func:`gpustack.server.app.run_server`."""

from __future__ import annotations

import os
import socket
from typing import Any

from gpustack import __version__
from gpustack.app.parent import Parent
from gpustack.extensions import load_catalogue
from gpustack.kit.live import Live
from gpustack.kit.net import LOOPBACK
from gpustack.server.app import Listeners, run_server
from gpustack.server.config import ServerConfig, Tunables
from gpustack.server.cors import CorsPolicy
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
        tunables=tunables,
        own_addresses=frozenset({LOOPBACK, configuration["address"]}),
    )
    supervisor = os.getppid()
    await run_server(
        config,
        configuration["database_url"],
        load_catalogue(given=settings.plugins),
        Listeners(plain=(sockets["http"], sockets["api"]), tls=sockets.get("https")),
        parent.ready,
        alone=lambda: os.getppid() != supervisor,
    )


def tunables_of(settings: Settings) -> Tunables:
    """Return what of the settings is applied without a restart."""
    cors = CorsPolicy(
        allow_origins=settings.allow_origins,
        allow_methods=settings.allow_methods,
        allow_headers=settings.allow_headers,
        allow_credentials=settings.allow_credentials,
    )
    tls = None
    if settings.ssl_certfile is not None and settings.ssl_keyfile is not None:
        tls = (settings.ssl_certfile, settings.ssl_keyfile)
    return Tunables(
        cors=cors if settings.enable_cors else None,
        tls=tls,
        update_check_url="" if settings.disable_update_check else settings.update_check_url,
        effective=settings.effective,
    )
