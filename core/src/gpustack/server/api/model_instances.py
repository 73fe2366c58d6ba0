"""``/v2/model-instances``: the running copies of models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from gpustack.db import Transaction
from gpustack.kit.errors import Conflict, Forbidden, NotFound
from gpustack.lifecycle.instance import ON_WORKER, may_follow
from gpustack.plugin.memory import Learned
from gpustack.schemas import (
    InstanceMemory,
    InstanceReport,
    InstanceState,
    MeasuredPeak,
    ModelInstancePublic,
    Page,
)
from gpustack.server.api.listing import Select, listed
from gpustack.server.api.logs import log_stream
from gpustack.server.api.members import HANDLERS as MEMBERS
from gpustack.server.api.members import member_said
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.body import Body, one
from gpustack.server.reconcile.learned import first_peak, memory_key
from gpustack.server.services import services

_WORKER = {"access": Access.WORKER}
_TAGS = ["Model instances"]
#: Litestar keeps the name ``state`` for itself.
InState = Annotated[InstanceState | None, QueryParameter(name="state")]


@get("/model-instances", opt=_WORKER, tags=_TAGS)
async def list_instances(
    request: Req,
    selection: Select,
    model_id: FromQuery[int | None] = None,
    worker_id: FromQuery[int | None] = None,
    in_state: InState = None,
) -> Response[Page[ModelInstancePublic]]:
    """List instances."""
    return await listed(
        request,
        services(request).store.instances,
        selection,
        topic="model-instances",
        filters={"model_id": model_id, "worker_id": request.user.only_own(worker_id), "state": in_state},
    )


@get("/model-instances/{instance_id:int}", opt=_WORKER, tags=_TAGS)
async def get_instance(request: Req, instance_id: FromPath[int]) -> Response[ModelInstancePublic]:
    """Return one instance."""
    instance = await services(request).store.instances.get(instance_id)
    if not request.user.may_see_any(instance.worker_ids):
        raise NotFound(f"there is no model instance {instance_id} on this worker")
    return one(instance)


@delete("/model-instances/{instance_id:int}", tags=_TAGS)
async def delete_instance(
    request: Req,
    instance_id: FromPath[int],
    force: Annotated[bool, QueryParameter(description="Cut requests in flight off.")] = False,
) -> None:
    """End an instance. While its model wants as many, a new one takes its place: this is how to restart.

    It takes no new requests from now on, and ends once those in flight are answered; with ``force`` it ends at once.
    """
    instances = services(request).store.instances
    if force:
        await instances.delete(instance_id)
    else:
        await instances.drain(instance_id, why="it was removed by hand")


@post(
    "/model-instances/{instance_id:int}/report",
    opt=_WORKER,
    dto=Body[InstanceReport],
    status_code=200,
    tags=_TAGS,
)
async def report_instance(
    request: Req, instance_id: FromPath[int], data: JSONBody[InstanceReport]
) -> Response[ModelInstancePublic]:
    """Take what a worker says of an instance it runs; 409 when it is not its own, or the step is not allowed."""
    if data.member is not None:
        return one(await member_said(request, instance_id, data))
    if data.ended:
        return one(await _ended(request, instance_id))
    columns = data.model_dump(
        exclude_unset=True, exclude={"restarted", "restart_count", "missed_error", "ended", "peak"}
    )
    columns.setdefault("state_message", "")
    if data.state is InstanceState.INITIALIZING:
        # Those of the process before say nothing about the next one.
        columns = {"pid": None, "port": None, **columns}
    # A worker drops what is refused: only what the row says at the moment of writing may refuse it.
    async with services(request).store.transaction() as tx:
        instance = await tx.instances.locked(instance_id)
        check_report(request, instance, data.state)
        restarts = _restarts(data, instance)
        # What came before a restart that is counted was told along with it.
        told = data.restarted and restarts == instance.restart_count
        if data.missed_error is not None and not told and may_follow(instance.state, InstanceState.ERROR):
            instance = await tx.instances.update(
                instance_id, state=InstanceState.ERROR, state_message=data.missed_error
            )
        if restarts > instance.restart_count:
            columns["restart_count"] = restarts
            columns["last_restart_time"] = datetime.now(UTC)
        if data.peak is not None:
            columns["memory"] = await _learn(tx, instance, data.peak)
        changed = await tx.instances.update(instance_id, **columns)
    return one(changed)


async def _learn(tx: Transaction, instance: ModelInstancePublic, peak: MeasuredPeak) -> InstanceMemory:
    """Remember what an instance took for the next of its kind, and return what is shown of it."""
    before = instance.memory
    now = before.model_copy(
        update={
            "peak_ram": max(before.peak_ram, peak.ram),
            "peak_vram": max(before.peak_vram, peak.vram),
        }
    )
    if now != before and (key := memory_key(instance)) is not None:
        taken = Learned(ram=now.peak_ram, vram=now.peak_vram)
        await tx.measured.learn(key, taken, new_start=first_peak(before))
    return now


def _restarts(report: InstanceReport, instance: ModelInstancePublic) -> int:
    """Return how often the engine was started again, with what ``report`` says; its worker may send it twice."""
    if not report.restarted:
        return instance.restart_count
    if report.restart_count is None:
        return instance.restart_count + 1
    return max(instance.restart_count, report.restart_count)


async def _ended(request: Req, instance_id: int) -> ModelInstancePublic:
    """Forget an instance whose engine has ended as it should."""
    async with services(request).store.transaction() as tx:
        instance = await tx.instances.locked(instance_id)
        check_reporter(request, instance)
        if instance.draining_since is None:
            raise Conflict(f"instance {instance.name} does not drain and is not to end")
        return await tx.instances.delete(instance_id)


def check_reporter(request: Req, instance: ModelInstancePublic) -> None:
    """Raise Conflict or Forbidden unless the caller is the worker that has ``instance``."""
    if request.user.via is not Via.WORKER:
        raise Forbidden("only the worker that runs an instance reports on it")
    if instance.members:
        raise Conflict(f"instance {instance.name} has members; say which one it is about")
    if instance.worker_id != request.user.worker_id:
        raise Conflict(f"instance {instance.name} is not on worker {request.user.username} any more")


def check_report(request: Req, instance: ModelInstancePublic, new: InstanceState) -> None:
    """Raise Conflict or Forbidden when this caller may not move ``instance`` to ``new``."""
    check_reporter(request, instance)
    if new not in ON_WORKER or not may_follow(instance.state, new):
        raise Conflict(f"instance {instance.name} is {instance.state} and cannot become {new}")


@get("/model-instances/{instance_id:int}/logs", tags=_TAGS)
async def get_logs(
    request: Req,
    instance_id: FromPath[int],
    tail: Annotated[int, QueryParameter(ge=-1, description="Last lines to begin with; -1 is all.")] = -1,
    follow: Annotated[bool, QueryParameter(description="Go on with what is written later.")] = False,
    previous: Annotated[bool, QueryParameter(description="The log of the start before this one.")] = False,
    member: Annotated[
        int, QueryParameter(ge=0, description="Of an instance over several workers, which member; 0 leads.")
    ] = 0,
) -> Response[str]:
    """Return the engine's log, from the worker that runs it."""
    return await log_stream(request, instance_id, tail=tail, follow=follow, previous=previous, member=member)


HANDLERS = [list_instances, get_instance, delete_instance, report_instance, get_logs, *MEMBERS]
