"""Answers of the gateway's own: errors in the shape that each API has, and the list of models."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway.operations import Operation
from gpustack.dataplane.http import Request
from gpustack.plugin.routing import Principal, Route, RoutingTable

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: ApiError, operation: Operation | None, *, anthropic: bool = False) -> bytes:
    """Return the document of an error, as clients of ``operation`` expect it, or such of Anthropic's in any case."""
    if not (anthropic or (operation is not None and operation.anthropic)):
        return error.body()
    kind = _ANTHROPIC.get(error.status, "api_error")
    return json.dumps({"type": "error", "error": {"type": kind, "message": error.message}}).encode()


def error_event(error: ApiError, operation: Operation) -> bytes:
    """Return the event by which a stream ends that has begun already."""
    name = b"event: error\n" if operation.anthropic else b""
    return b"%bdata: %b\n\n" % (name, error_body(error, operation))


def asks_anthropic(request: Request) -> bool:
    """Tell whether ``request``, for the models there are, comes from a client of Anthropic's API."""
    return request.path.startswith(b"/v1/models") and request.header(b"anthropic-version") is not None


def model_list(table: RoutingTable, principal: Principal, *, anthropic: bool = False) -> bytes:
    """Return the models that run, or start when they are asked, and that ``principal`` may ask, by every name they have.

    In the shape of Anthropic's API all are on one page.
    """
    found = [
        (name, route)
        for name, route in table.routes.items()
        if _answers(table, route) and principal.may_use(name)
    ]
    data = [_shown(*each, anthropic=anthropic) for each in sorted(found, key=lambda each: each[0])]
    if not anthropic:
        return json.dumps({"object": "list", "data": data}).encode()
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return json.dumps({"data": data, "has_more": False, "first_id": first, "last_id": last}).encode()


def _answers(table: RoutingTable, route: Route) -> bool:
    """Tell whether somebody answers, be it another in its place."""
    if route.targets or route.asleep or not route.fallback:
        return bool(route.targets) or route.asleep
    other = table.routes.get(route.fallback)
    return other is not None and bool(other.targets)


def model_entry(name: str, route: Route, *, anthropic: bool = False) -> bytes:
    """Return what is said of one model."""
    return json.dumps(_shown(name, route, anthropic=anthropic)).encode()


def _shown(name: str, route: Route, *, anthropic: bool) -> dict[str, Any]:
    if not anthropic:
        return _entry(name, route)
    created = datetime.fromtimestamp(route.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created}


def _entry(name: str, route: Route) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": route.created,
        "owned_by": "gpustack",
        "meta": {"categories": list(route.categories), "running": len(route.targets)},
    }
