"""The inference API as an ASGI application: who asks, which model, which instance, and the answer passed through."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from gpustack.dataplane import body, errors
from gpustack.dataplane.asgi import Message, Receive, Scope, Send, answer, bearer, header, while_listening
from gpustack.dataplane.choose import Balancer
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.forward import CutOff, Forwarder
from gpustack.dataplane.upstream import Upstream
from gpustack.kit.errors import GPUStackError
from gpustack.plugin.routing import Principal, Route, RoutingTable

log = logging.getLogger(__name__)

#: Every path that is passed on, as engines know it.
FORWARDED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"})
#: Other names of the same.
PREFIXES = ("/v1/", "/v1-openai/")
ALIASES = {"/v2/rerank": "/v1/rerank"}
MAX_BODY = 64 << 20

#: Paths that only a model which writes text can serve, and the kinds of those. (Whether a language model also embeds is
#: a matter of the engine's parameters, so the engine tells.)
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
_GENERATES = frozenset({"llm", "unknown"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

#: Tells who made a request that carries no key, by its cookie for instance; None is nobody.
Fallback = Callable[[Scope], Awaitable[Principal | None]]


async def nobody(scope: Scope) -> Principal | None:
    """Know no other credentials than keys."""
    del scope
    return None


def serves(path: str) -> bool:
    """Tell whether ``path`` belongs to the inference API."""
    return path.startswith(PREFIXES) or path in ALIASES or path in ("/v1", "/v1-openai")


class InferenceApp:
    """Answers everything below ``/v1``. ``table`` gives the present routing table whenever it is asked."""

    def __init__(
        self,
        table: Callable[[], RoutingTable],
        upstream: Upstream,
        balancer: Balancer,
        *,
        fallback: Fallback = nobody,
        max_body: int = MAX_BODY,
    ) -> None:
        self._table = table
        self._fallback = fallback
        self._max_body = max_body
        self._forwarder = Forwarder(upstream, balancer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Nothing but a cancellation leaves it, or what ``send`` raises for an error's answer."""
        given = header(scope, b"x-request-id")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._serve(scope, receive, noting_send, request_id)
            return
        except (body.ClientGone, CutOff):
            return  # the server closes the connection of an unfinished answer
        except ApiError as error:
            refusal = error
        except GPUStackError as error:
            refusal = errors.of(error)
        except Exception:
            log.exception("request %s to %s failed", request_id, scope["path"])
            refusal = errors.internal(request_id)
        if not begun:
            headers = [*refusal.headers(), (b"x-request-id", request_id.encode())]
            await answer(send, refusal.status, headers, refusal.body())

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        path = _canonical(scope["path"])
        table = self._table()
        principal = await self._principal(scope, table)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _only(scope, "GET")
            content = _models(table, principal, path.removeprefix("/v1/models").removeprefix("/"))
            await answer(
                send,
                200,
                [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())],
                content,
            )
            return
        if path not in FORWARDED:
            raise ApiError(
                404, f"there is no {scope['path']}; see /docs for the paths there are", code="unknown_path"
            )
        _only(scope, "POST")
        await self._forward(scope, receive, send, path, principal, request_id)

    async def _principal(self, scope: Scope, table: RoutingTable) -> Principal:
        if credential := bearer(scope):
            found = table.principal(credential, now=time.time())
        else:
            found = await self._fallback(scope)
        if found is None:
            raise errors.invalid_key()
        return found

    async def _forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        principal: Principal,
        request_id: str,
    ) -> None:
        if header(scope, b"content-encoding") not in ("", "identity"):
            raise ApiError(
                415, "compressed request bodies are not understood; send plain JSON", code="invalid_request"
            )
        content = await body.read(receive, limit=self._max_body, announced=_announced(scope))
        name = await body.model_of(content)
        # The table of this moment: a slow client takes longer to ask than an instance needs to go.
        route = self._table().routes.get(name)
        if route is None or not principal.may_use(name):
            raise errors.unknown_model(name)
        if path in _GENERATING and route.categories and not _GENERATES.intersection(route.categories):
            raise errors.wrong_kind(name, route.categories, path)
        if not route.targets:
            raise errors.not_running(name, route.obstacle)
        work = self._forwarder.run(scope, send, route, path, content, request_id)
        await while_listening(work, receive)


def _canonical(path: str) -> str:
    if path in ALIASES:
        return ALIASES[path]
    return "/v1" + path.removeprefix("/v1-openai") if path.startswith("/v1-openai") else path


def _only(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise ApiError(405, f"{scope['path']} takes {method} only", code="method_not_allowed", allow=method)


def _announced(scope: Scope) -> int | None:
    value = header(scope, b"content-length")
    return int(value) if value.isdigit() else None


def _models(table: RoutingTable, principal: Principal, name: str) -> bytes:
    if name:
        route = table.routes.get(name)
        if route is None or not principal.may_use(name):
            raise errors.unknown_model(name)
        return json.dumps(_entry(route)).encode()
    routes = [route for route in table.routes.values() if route.targets and principal.may_use(route.name)]
    routes.sort(key=lambda route: route.name)
    return json.dumps({"object": "list", "data": [_entry(route) for route in routes]}).encode()


def _entry(route: Route) -> dict[str, Any]:
    return {
        "id": route.name,
        "object": "model",
        "created": route.created,
        "owned_by": "gpustack",
        "meta": {"categories": list(route.categories), "running": len(route.targets)},
    }
