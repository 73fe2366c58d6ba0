"""The worker's composition: from plain settings to :func:`gpustack.worker.agent.run_worker`."""

from __future__ import annotations

import platform
import socket
from typing import Any

from gpustack.app.parent import Parent
from gpustack.extensions import load_catalogue
from gpustack.kit.live import Live
from gpustack.kit.paths import make_dir
from gpustack.settings.model import Settings
from gpustack.settings.resources import Resources
from gpustack.worker.agent import run_worker
from gpustack.worker.artifacts.hub import HubConfig
from gpustack.worker.artifacts.hub.config import ENDPOINT
from gpustack.worker.config import WorkerConfig


async def run(configuration: dict[str, Any], sockets: dict[str, socket.socket], parent: Parent) -> None:
    """Be the worker until cancelled."""
    settings = Settings.model_validate(configuration["settings"])
    hub_token = Live(settings.huggingface_token)
    parent.on_reload = lambda new: hub_token.change(str(new["settings"]["huggingface_token"]))
    config = WorkerConfig(
        server_url=configuration["server_url"],
        registration_token=settings.token,
        name=settings.worker_name or platform.node() or "worker",
        advertise_ip=configuration["address"],
        interface=settings.worker_ifname,
        door_port=configuration["port"],
        data_dir=settings.data_dir,
        bin_dir=make_dir(settings.bin_dir, what="--bin-dir"),
        log_dir=settings.log_dir,
        service_ports=tuple(settings.service_port_range.ports()),
        group_ports=tuple(settings.distributed_worker_port_range.ports()),
        ray_ports=settings.ray_node_ports,
        pipx_path=settings.pipx_path,
        tools_url=settings.tools_download_base_url,
        container_registry=settings.system_default_container_registry,
        unused_engines=settings.keep_unused_engines * 86_400.0,
        hub=hub_of(settings),
        hub_token=hub_token,
        system_reserved=settings.system_reserved.in_bytes(),
        resources=settings.resources or Resources(),
        remote=bool(settings.server_url),
        # Engines outlive the worker, however it ends; on an orderly end the supervisor ends them.
        keep_engines=True,
    )
    await run_worker(config, load_catalogue(given=settings.plugins), sockets["http"], parent.ready)


def hub_of(settings: Settings) -> HubConfig:
    """Return where models come from."""
    return HubConfig(
        cache_dir=settings.cache_dir / "huggingface",
        endpoint=settings.hf_endpoint or ENDPOINT,
        token=settings.huggingface_token,
        xet=settings.enable_hf_xet,
        fast=settings.enable_hf_transfer,
        offline=settings.hf_hub_offline,
    )
