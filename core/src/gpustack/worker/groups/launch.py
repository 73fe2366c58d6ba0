"""What a backend is asked about one member of an instance that spans workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gpustack.extensions import Guard
from gpustack.plugin import (
    Arrangement,
    ArrangesMembers,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    Member,
    PluginError,
    Refused,
    ResourceClaim,
    SpansWorkers,
)
from gpustack.schemas import InstanceMember, ModelInstancePublic


def _same(plan: LaunchPlan) -> LaunchPlan:
    return plan


@dataclass(frozen=True, slots=True)
class MemberLaunch:
    """Which member is launched, and of whom. ``around`` makes of its plan what is really run.

    With a Ray, what runs for members that do not lead is Ray's: of their plan only the environment counts.
    """

    members: tuple[Member, ...]
    number: int
    around: Callable[[LaunchPlan], LaunchPlan] = _same


def members_of(instance: ModelInstancePublic, ports: int = 0) -> tuple[Member, ...]:
    """Return the members as backends see them, each with the first ``ports`` of those that its worker has told."""
    return tuple(
        Member(
            number=each.number,
            host=each.host or each.worker_ip,
            interface=each.interface,
            ports=tuple(each.ports[:ports]),
            devices=_devices(each),
            claim=_claim(each),
        )
        for each in instance.members
    )


def as_seen_by(instance: ModelInstancePublic, number: int) -> ModelInstancePublic:
    """Return the instance as if its member ``number`` were all of it: its GPUs, its claim, its files."""
    member = instance.members[number]
    mine = {
        "gpu_indexes": member.gpu_indexes,
        "computed_resource_claim": member.computed_resource_claim,
        "resolved_path": member.resolved_path,
    }
    return instance.model_copy(update=mine)


async def planned(
    plugin: str, backend: InferenceBackend[Any], request: LaunchRequest, launch: MemberLaunch | None
) -> LaunchPlan:
    """Return what to run for ``request``, as a whole instance or as one member of it. Raises GPUStackError."""
    if launch is None:
        plan: LaunchPlan = await Guard.call(plugin, backend.launch, request)
        return plan
    request = replace(request, members=launch.members, member=launch.number)
    plan = await Guard.call(plugin, _spanning(backend).launch_member, request)
    if launch.number > 0:
        # Only the leader answers requests.
        plan = replace(plan, ready=replace(plan.ready, path=""))
    return launch.around(plan)


async def arranged(plugin: str, backend: InferenceBackend[Any], request: LaunchRequest) -> Arrangement:
    """Return how the members of an instance come together. Raises GPUStackError."""
    spanning = _spanning(backend)
    if not isinstance(spanning, ArrangesMembers):
        return Arrangement()
    found: object = await Guard.call(plugin, spanning.arrangement, request)
    if not isinstance(found, Arrangement) or not 1 <= found.ports <= 1024:
        raise PluginError(f"arrangement returned {found!r}; return an Arrangement with 1 to 1024 ports")
    return found


def _spanning(backend: InferenceBackend[Any]) -> SpansWorkers:
    if isinstance(backend, SpansWorkers):
        return backend
    raise Refused(f"the backend {backend.name} of this worker spans no workers; upgrade its plugin here")


def _devices(member: InstanceMember) -> tuple[GpuDevice, ...]:
    return tuple(
        GpuDevice(
            uuid=each.uuid,
            index=each.index,
            vendor=each.vendor,
            name=each.name,
            memory_total=each.memory_total,
            type=each.type,
        )
        for each in member.devices
    )


def _claim(member: InstanceMember) -> ResourceClaim:
    claim = member.computed_resource_claim
    return ResourceClaim(ram=claim.ram, vram=sum(claim.vram.values()), gpus=len(claim.vram))
