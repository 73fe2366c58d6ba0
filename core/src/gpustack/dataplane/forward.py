"""One request passed to one engine, or to the door before it, and its answer passed back piece by piece."""

from __future__ import annotations

import json
import logging

from gpustack.dataplane import errors
from gpustack.dataplane.asgi import Scope, Send
from gpustack.dataplane.choose import Balancer
from gpustack.dataplane.hops import DIED, DOOR_SAYS, for_clients, for_engines
from gpustack.dataplane.upstream import ConnectFailed, Exchange, Upstream, UpstreamDied
from gpustack.plugin.routing import Route, Target

log = logging.getLogger(__name__)

_ERROR_BODY = 64 << 10


class CutOff(Exception):
    """Part of an answer went out and the rest will not: the connection must end, so that nobody takes it for all."""


class _NotNow(Exception):
    """The engine took the request and did nothing with it, for want of room or of a loaded model."""

    def __init__(self, refusal: errors.ApiError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Forwarder:
    """Passes requests on through one pool of connections and one balance of load."""

    def __init__(self, upstream: Upstream, balancer: Balancer) -> None:
        self._upstream = upstream
        self._balancer = balancer

    async def run(
        self, scope: Scope, send: Send, route: Route, path: str, content: bytes, request_id: str
    ) -> None:
        """Answer with what an engine of ``route`` says.

        Another instance is tried when one cannot be connected to, or says that it cannot serve now (503), as engines do
        while they load. Otherwise none is once a request was sent: what made one engine crash must not reach the next.
        Raises ApiError as long as nothing has been answered; afterwards a
        stream ends with an error event, and anything else raises CutOff.
        """
        headers = [*for_engines(scope["headers"]), (b"x-request-id", request_id.encode())]
        query = bytes(scope["query_string"]).decode("latin-1")
        target_path = f"{path}?{query}" if query else path
        failed: set[int] = set()
        refusal = errors.not_running(route.name, "does not accept connections")
        while (target := self._balancer.choose(route.targets, without=failed)) is not None:
            try:
                await self._attempt(send, route, target, target_path, headers, content, request_id)
                return
            except ConnectFailed as error:
                log.warning("model %s: instance %d %s", route.name, target.instance_id, error)
                failed.add(target.instance_id)
            except _NotNow as error:
                log.info("model %s: instance %d: %s", route.name, target.instance_id, error.refusal.message)
                failed.add(target.instance_id)
                refusal = error.refusal
        raise refusal

    async def _attempt(
        self,
        send: Send,
        route: Route,
        target: Target,
        path: str,
        headers: list[tuple[bytes, bytes]],
        content: bytes,
        request_id: str,
    ) -> None:
        if target.credential:
            headers = [*headers, (b"authorization", b"Bearer " + target.credential.encode())]
        with self._balancer.lease(target):
            try:
                async with self._upstream.request(
                    "POST", target.host, target.port, target.path_prefix + path, headers, content
                ) as answer:
                    if target.credential:
                        await _check_door(answer, target)
                    await _pass_back(send, answer, route, request_id)
            except UpstreamDied as error:
                log.warning("model %s: instance %d %s", route.name, target.instance_id, error)
                raise errors.engine_failed(route.name, str(error)) from error


async def _pass_back(send: Send, answer: Exchange, route: Route, request_id: str) -> None:
    if answer.status == 503:
        message = errors.engine_message(await _whole(answer)) or "cannot serve now"
        raise _NotNow(errors.not_running(route.name, f"cannot serve now: {message}"))
    if answer.status >= 400:
        raise errors.of_engine(answer.status, await _whole(answer))
    headers = for_clients(answer.headers)
    headers.append((b"x-request-id", request_id.encode()))
    streaming = any(name == b"content-type" and b"text/event-stream" in value for name, value in headers)
    if streaming:
        headers.append((b"x-accel-buffering", b"no"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    last = b"\n\n"
    try:
        async for piece in answer:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            last = (last + piece)[-2:]
    except UpstreamDied as error:
        log.warning("model %s: its engine %s", route.name, error)
        if not streaming:
            raise CutOff from error
        await send(
            {"type": "http.response.body", "body": _error_event(route, error, last), "more_body": False}
        )
        return
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _whole(answer: Exchange) -> bytes:
    """Return the body of an error, or as much of it as anybody reads."""
    content = b""
    async for piece in answer:
        content += piece
        if len(content) > _ERROR_BODY:
            break
    return content


def _error_event(route: Route, error: UpstreamDied, last: bytes) -> bytes:
    """Return an event that says what happened, after the end of an unfinished one."""
    document = json.loads(errors.engine_failed(route.name, str(error)).body())
    return (b"" if last == b"\n\n" else b"\n\n") + b"data: " + json.dumps(document).encode() + b"\n\n"


async def _check_door(answer: Exchange, target: Target) -> None:
    """Raise what asking the engine itself would have raised, when the answer is the door's own."""
    said = next((value for name, value in answer.headers if name == DOOR_SAYS), None)
    if said is None:
        return
    why = errors.engine_message(await _whole(answer))
    if said == DIED:
        raise UpstreamDied("ended before it answered")
    raise ConnectFailed(f"cannot be reached by the door at {target.host}:{target.port}: {why}")
