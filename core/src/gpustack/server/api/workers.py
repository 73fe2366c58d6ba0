"""``/v2/workers`` and ``/v2/worker-heartbeat``: machines that run engines."""

from __future__ import annotations

import logging
import secrets

from litestar import Response, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from gpustack.dataplane.asgi import bearer
from gpustack.kit.errors import Conflict, Forbidden, InvalidInput
from gpustack.kit.versions import misfit
from gpustack.plugin.routing import digest
from gpustack.schemas import (
    FleetPublic,
    Heartbeat,
    Page,
    WorkerChallenge,
    WorkerPublic,
    WorkerRegistered,
    WorkerRegistration,
)
from gpustack.schemas.workers import WorkerUpdate
from gpustack.server.api.listing import Select, listed
from gpustack.server.auth.authenticate import WORKER_TOKEN
from gpustack.server.auth.caller import Access, Req, Via
from gpustack.server.auth.challenges import LIFETIME
from gpustack.server.auth.routes import is_loopback
from gpustack.server.body import Body, nothing, one
from gpustack.server.services import services

log = logging.getLogger(__name__)

_TAGS = ["Workers"]


@post("/worker-challenges", opt={"access": Access.REGISTRATION}, tags=_TAGS)
async def worker_challenge(request: Req) -> Response[WorkerChallenge]:
    """Return what a worker signs to prove that it has its key; see ``proof`` of a registration."""
    challenge = services(request).authenticator.challenges.make()
    return one(WorkerChallenge(challenge=challenge, expires_in=LIFETIME), status=201)


@post("/workers", opt={"access": Access.REGISTRATION}, dto=Body[WorkerRegistration], tags=_TAGS)
async def register_worker(request: Req, data: JSONBody[WorkerRegistration]) -> Response[WorkerRegistered]:
    """Let a worker join, or come back: whoever proves the same key, or has the same ``worker_uuid``, is the same worker.

    With the registration token it gets a new token of its own, and the one it had ends. With its own token, which
    it then keeps, it renews its registration; so an answer that is lost does no harm either way.
    """
    parts = services(request)
    _check_version(request, data.version, data.name)
    _check_address(request, data)
    parts.authenticator.challenges.check(data)
    renews = request.user.worker_id if request.user.via is Via.WORKER else None
    token = WORKER_TOKEN + secrets.token_hex(24) if renews is None else bearer(request.scope)
    async with parts.registering:
        cluster = await parts.default_cluster()
        try:
            worker = await parts.store.workers.register(data, digest(token), cluster.id, renews=renews)
        except Conflict as error:
            parts.fleet.refused(f"{data.worker_uuid} {data.start}", error.message)
            raise
    parts.authenticator.workers.changed(worker.id)
    answer = WorkerRegistered(id=worker.id, name=worker.name, token=token, session=worker.session)
    return one(answer, status=201)


def _check_version(request: Req, version: str, name: str) -> None:
    """Raise InvalidInput when a worker of that version does not go with this server."""
    if line := misfit(services(request).config.version, version):
        log.warning("worker %s is refused: %s", name, line)
        raise InvalidInput(line)


def _check_address(request: Req, data: WorkerRegistration) -> None:
    """Raise InvalidInput when a worker elsewhere says that it is reached at the loopback address."""
    peer = request.client.host if request.client else ""
    here = is_loopback(peer) or peer in services(request).config.own_addresses
    if peer and not here and is_loopback(data.ip):
        raise InvalidInput(
            f"the worker says that it is reached at {data.ip}, which is every machine's own address; start it "
            f"with --advertise-address and one that the server can reach, such as {peer}"
        )


@get("/fleet", tags=_TAGS)
async def get_fleet(request: Req) -> Response[FleetPublic]:
    """Return how many workers are in each state, and what is remarkable of them as a whole."""
    counts = await services(request).store.workers.counts()
    return one(FleetPublic(workers=counts, notices=services(request).fleet.notices()))


@get("/workers", tags=_TAGS)
async def list_workers(
    request: Req,
    selection: Select,
    cluster_id: FromQuery[int | None] = None,
) -> Response[Page[WorkerPublic]]:
    """List workers."""
    return await listed(
        request,
        services(request).store.workers,
        selection,
        topic="workers",
        filters={"cluster_id": cluster_id},
        find=services(request).store.workers.document,
    )


@get("/workers/{worker_id:int}", tags=_TAGS)
async def get_worker(request: Req, worker_id: FromPath[int]) -> Response[WorkerPublic]:
    """Return one worker."""
    return one(await services(request).store.workers.get(worker_id))


@put("/workers/{worker_id:int}", dto=Body[WorkerUpdate], tags=_TAGS)
async def update_worker(
    request: Req, worker_id: FromPath[int], data: JSONBody[WorkerUpdate]
) -> Response[WorkerPublic]:
    """Change a worker's labels, or take it out of service and back; what is left out stays."""
    changed = await services(request).store.workers.update(
        worker_id, labels=data.labels, maintenance=data.maintenance
    )
    return one(changed)


@delete("/workers/{worker_id:int}", tags=_TAGS)
async def delete_worker(request: Req, worker_id: FromPath[int]) -> None:
    """Remove a worker. Its instances are placed elsewhere; when it still runs, it joins again."""
    await services(request).store.workers.delete(worker_id)
    services(request).authenticator.workers.changed(worker_id)


@post(
    "/worker-heartbeat",
    opt={"access": Access.WORKER, "worker_may_be_gone": True, "many": True},
    dto=Body[Heartbeat],
    status_code=204,
    tags=_TAGS,
)
async def heartbeat(request: Req, data: JSONBody[Heartbeat]) -> Response[None]:
    """Take a worker's sign of life; 404 when the worker was removed and has to register again."""
    if request.user.via is not Via.WORKER:
        raise Forbidden("only workers send heartbeats")
    # The server may be another version than when the worker registered.
    _check_version(request, request.user.worker_version, request.user.username)
    services(request).heartbeats.add(request.user.worker_id, data)
    return nothing()


HANDLERS = [
    get_fleet,
    worker_challenge,
    register_worker,
    list_workers,
    get_worker,
    update_worker,
    delete_worker,
    heartbeat,
]
