"""The log of an instance, fetched from its worker and passed on as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import cast

from litestar import Response

from gpustack.dataplane import ConnectFailed, UpstreamDied
from gpustack.dataplane.upstream import Exchange
from gpustack.kit.errors import Conflict, NotFound, Unavailable
from gpustack.kit.net import LOOPBACK
from gpustack.schemas import ModelInstancePublic
from gpustack.server.auth.caller import Req
from gpustack.server.errors import BadGateway
from gpustack.server.services import services
from gpustack.server.streams import Streamed

#: Seconds for a worker to begin its answer; the log itself may go on for ever.
HEAD_LIMIT = 10.0


async def log_stream(
    request: Req, instance_id: int, *, tail: int, follow: bool, previous: bool = False, member: int = 0
) -> Response[str]:
    """Return the answer that streams the log. Raises Conflict before a worker has the instance, NotFound without a log.

    ``member`` is which of those that it has on several workers; 0 leads.
    """
    parts = services(request)
    instance = await parts.store.instances.get(instance_id)
    if instance.worker_id is None:
        raise Conflict(f"instance {instance.name} is {instance.state} and has no log yet")
    worker_id, worker_name = _worker_of(instance, member)
    door = await parts.store.workers.door(worker_id)
    beside = door.runs_beside(await asyncio.to_thread(parts.config.built_in_worker))
    host = LOOPBACK if beside else door.ip
    path = f"/serveLogs/{instance_id}?tail={tail}&follow={'true' if follow else 'false'}"
    if previous:
        path += "&previous=true"
    headers = [(b"authorization", f"Bearer {door.token}".encode())]
    stack = contextlib.AsyncExitStack()
    try:
        async with asyncio.timeout(HEAD_LIMIT):
            exchange = await stack.enter_async_context(
                parts.upstream.request("GET", host, door.port, path, headers)
            )
    except TimeoutError:
        raise Unavailable(
            f"worker {worker_name} has not answered for {HEAD_LIMIT:.0f} s", retry_after=5
        ) from None
    except (ConnectFailed, UpstreamDied) as error:
        raise BadGateway(f"worker {worker_name} does not hand out the log: it {error}") from error
    if exchange.status != 200:
        await stack.aclose()
        if exchange.status == 404 and previous:
            raise NotFound(
                f"instance {instance.name} has no previous log: its engine was not started more than once"
            )
        if exchange.status == 404:
            raise NotFound(f"instance {instance.name} has no log on worker {worker_name}")
        raise BadGateway(f"worker {worker_name} does not hand out the log: it answered {exchange.status}")
    pieces = _pieces(exchange, worker_name)
    return cast(
        "Response[str]", Streamed(pieces, media_type="text/plain; charset=utf-8", on_end=stack.aclose)
    )


def _worker_of(instance: ModelInstancePublic, member: int) -> tuple[int, str]:
    """Return the worker of a member. Raises NotFound when there is no such member."""
    if member == 0:
        return instance.worker_id or 0, instance.worker_name
    if member >= len(instance.members):
        raise NotFound(f"instance {instance.name} has {len(instance.members) or 1} members, numbered from 0")
    return instance.members[member].worker_id, instance.members[member].worker_name


async def _pieces(exchange: Exchange, worker: str) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in exchange:
            yield piece
    except UpstreamDied:
        yield f"\n[worker {worker} ended the log]\n".encode()
