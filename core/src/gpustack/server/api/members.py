"""What workers say of members of instances that span several, and what they are told besides the row."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

from litestar import Response, get
from litestar.params import FromPath

from gpustack.db import Transaction
from gpustack.kit.errors import Conflict, Forbidden, NotFound
from gpustack.lifecycle import group as groups
from gpustack.schemas import GroupOrders, InstanceReport, InstanceState, MemberState, ModelInstancePublic
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import one
from gpustack.server.services import services


async def member_said(request: Req, instance_id: int, data: InstanceReport) -> ModelInstancePublic:
    """Take what a worker says of its member. Raises Conflict when it has none, or not the one that it speaks of."""
    async with services(request).store.transaction() as tx:
        instance = await tx.instances.locked(instance_id)
        number = check_member(request, instance)
        report = data.member
        if report is None or report.number != number:
            raise Conflict(f"instance {instance.name} has member {number} on worker {request.user.username}")
        if report.attempt < instance.attempt:
            return instance  # of an attempt that is over
        before = groups.of(instance)
        after = groups.take(
            before,
            report,
            data.state_message,
            ran=_ran(instance),
            restarts=await _restarts(tx, instance, report.state),
            resolved_path=data.resolved_path or "",
        )
        if instance.draining_since is not None and groups.is_over(after.members):
            return await tx.instances.delete(instance_id)
        columns = {**groups.columns(before, after), **_details(data, instance, number)}
        return await tx.instances.update(instance_id, **columns) if columns else instance


def check_member(request: Req, instance: ModelInstancePublic) -> int:
    """Return the number of the caller's member of ``instance``. Raises Conflict or Forbidden when it has none."""
    if request.user.via is not Via.WORKER:
        raise Forbidden("only a worker that runs a part of an instance reports on it")
    member = instance.member_on(request.user.worker_id or 0)
    if member is None:
        raise Conflict(f"instance {instance.name} is not on worker {request.user.username} any more")
    return member.number


def _ran(instance: ModelInstancePublic) -> float:
    if instance.state is not InstanceState.RUNNING:
        return 0.0
    return (datetime.now(UTC) - instance.state_since).total_seconds()


async def _restarts(tx: Transaction, instance: ModelInstancePublic, state: MemberState) -> bool:
    """Tell whether the members are started again when one has failed."""
    if state is not MemberState.FAILED or instance.draining_since is not None:
        return False
    try:
        return (await tx.models.get(instance.model_id)).restart_on_error
    except NotFound:
        return False


def _details(data: InstanceReport, instance: ModelInstancePublic, number: int) -> dict[str, Any]:
    """Return what the row shows of the leader's process, and how far files are that some member fetches."""
    columns: dict[str, Any] = {}
    if number == 0:
        wanted = {"pid": data.pid, "port": data.port, "resolved_path": data.resolved_path or None}
        columns = {
            name: value
            for name, value in wanted.items()
            if value != getattr(instance, name) and (value is not None or name != "resolved_path")
        }
    if data.download_progress is not None:
        columns["download_progress"] = data.download_progress
    return columns


@get("/model-instances/{instance_id:int}/group", opt={"access": Access.WORKER}, tags=["Model instances"])
async def get_group(request: Req, instance_id: FromPath[int]) -> Response[GroupOrders]:
    """Return what the members of an instance share: only their workers are told."""
    parts = services(request)
    instance = await parts.store.instances.get(instance_id)
    if request.user.via is not Via.WORKER or instance.member_on(request.user.worker_id or 0) is None:
        raise NotFound(f"there is no model instance {instance_id} with a member on this worker")
    door = await parts.store.workers.door(instance.worker_id or 0)
    said = f"group {instance.id} {instance.name} {instance.attempt}".encode()
    token = hmac.new(door.token.encode(), said, hashlib.sha256).hexdigest()
    return one(GroupOrders(token=token, ray_ports=dict(parts.config.ray_ports)))


HANDLERS = [get_group]
