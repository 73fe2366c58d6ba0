"""The server's composition: from plain settings to :func:`gpustack.server.app.run_server`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from gpustack import __version__
from gpustack.extensions import load_catalogue
from gpustack.kit.net import LOOPBACK
from gpustack.server.app import run_server
from gpustack.server.config import ServerConfig
from gpustack.settings.model import Settings


async def run(
    configuration: dict[str, Any], sockets: dict[str, socket.socket], on_ready: Callable[[], None]
) -> None:
    """Be the server until cancelled."""
    settings = Settings.model_validate(configuration["settings"])
    config = ServerConfig(
        data_dir=settings.data_dir,
        bin_dir=settings.bin_dir,
        version=__version__,
        bootstrap_password=settings.bootstrap_password,
        registration_token=settings.token,
        disable_openapi_docs=settings.disable_openapi_docs,
        debug=settings.debug,
        own_addresses=frozenset({LOOPBACK, configuration["address"]}),
    )
    supervisor = os.getppid()
    await run_server(
        config,
        configuration["database_url"],
        load_catalogue(),
        sockets["http"],
        on_ready,
        alone=lambda: os.getppid() != supervisor,
    )
