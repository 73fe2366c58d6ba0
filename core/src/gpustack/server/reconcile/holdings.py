"""What an instance holds, on each of the workers that it is on. Pure."""

from __future__ import annotations

from gpustack.lifecycle.instance import HOLDS_CLAIM
from gpustack.scheduling import Holding
from gpustack.schemas import Claim, ModelInstancePublic


def claim_on(instance: ModelInstancePublic, worker_id: int) -> Claim:
    """Return what the instance takes on one of its workers."""
    member = instance.member_on(worker_id)
    return instance.computed_resource_claim if member is None else member.computed_resource_claim


def holdings_of(instance: ModelInstancePublic) -> tuple[Holding, ...]:
    """Return what the instance holds; nothing where it has no place, or none that counts."""
    if instance.worker_id is None or instance.state not in HOLDS_CLAIM:
        return ()
    return tuple(
        Holding(
            instance_id=instance.id,
            model_id=instance.model_id,
            worker_id=each,
            ram=(claim := claim_on(instance, each)).ram,
            vram=claim.vram,
        )
        for each in instance.worker_ids
    )
