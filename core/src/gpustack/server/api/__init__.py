"""The management API below ``/v2``: one module per resource."""

from litestar import Router
from litestar.di import Provide

from gpustack.server.api import (
    clusters,
    config,
    decisions,
    defragmentation,
    gateway,
    gpu_devices,
    inference_backends,
    keys,
    model_files,
    model_instance_events,
    model_instances,
    model_routes,
    model_sets,
    models,
    plugins,
    update,
    users,
    worker_engines,
    workers,
)
from gpustack.server.api.listing import selection_of

ROUTER = Router(
    path="/v2",
    dependencies={"selection": Provide(selection_of, sync_to_thread=False)},
    route_handlers=[
        *users.HANDLERS,
        *keys.HANDLERS,
        *models.HANDLERS,
        *model_routes.HANDLERS,
        *model_instances.HANDLERS,
        *model_instance_events.HANDLERS,
        *model_files.HANDLERS,
        *workers.HANDLERS,
        *worker_engines.HANDLERS,
        *gpu_devices.HANDLERS,
        *inference_backends.HANDLERS,
        *clusters.HANDLERS,
        *model_sets.HANDLERS,
        *plugins.HANDLERS,
        *update.HANDLERS,
        *config.HANDLERS,
        *defragmentation.HANDLERS,
        *gateway.HANDLERS,
        *decisions.HANDLERS,
    ],
)

__all__ = ["ROUTER"]
