"""What all instances of a worker share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gpustack.extensions import BundledModels
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.schemas import GroupOrders, InstanceReport, ModelForWorker, ModelInstancePublic
from gpustack.worker.artifacts.hub import HubFiles
from gpustack.worker.config import WorkerConfig
from gpustack.worker.desk import Desk
from gpustack.worker.ports import PortPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all instances of a worker share."""

    config: WorkerConfig
    desk: Desk
    ports: PortPool
    #: Returns the present description of a model, by its id, as an instance of it is to be run.
    fetch_model: Callable[[int, int], Awaitable[ModelForWorker]]
    #: Takes a report for the server; never waits.
    report: Callable[[int, InstanceReport], None]
    hub: HubFiles
    bundled: BundledModels
    #: For what members of instances over several workers say to each other.
    group_ports: PortPool
    #: Returns what the members of an instance share.
    fetch_group: Callable[[int], Awaitable[GroupOrders]]

    async def model_if_any(
        self, instance: ModelInstancePublic, known: ModelForWorker | None
    ) -> ModelForWorker | None:
        """Return the model; None when it is gone: then the instance drains, or is gone too, and the watch says so."""
        if instance.draining_since is not None:
            return None
        try:
            return await self.model(instance, known)
        except NotFound:
            log.warning("instance %s: its model is gone", instance.name)
            return None

    async def model(self, instance: ModelInstancePublic, known: ModelForWorker | None) -> ModelForWorker:
        """Return the instance's model as the server has it, or as ``known`` while the server is away.

        Waits for the server when nothing is known. Raises NotFound when the model is gone.
        """
        wait = Backoff(first=0.5, limit=15.0)
        while True:
            try:
                return await self.fetch_model(instance.model_id, instance.id)
            except NotFound:
                raise
            except GPUStackError as error:
                if known is not None:
                    return known
                log.info("instance %s: %s", instance.name, error)
            await asyncio.sleep(wait.next())
