"""The one place where errors become HTTP answers: ``{code, reason, message}`` with one readable line."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from pydantic import ValidationError

from gpustack.kit import errors as kit
from gpustack.kit.text import human_bytes

log = logging.getLogger(__name__)

#: Bytes of a request body of the management API.
MAX_BODY = 1 << 20

_STATUS: tuple[tuple[type[kit.GPUStackError], int], ...] = (
    (kit.InvalidInput, 400),
    (kit.Unauthenticated, 401),
    (kit.Forbidden, 403),
    (kit.NotFound, 404),
    (kit.Conflict, 409),
    (kit.Throttled, 429),
    (kit.Unavailable, 503),
)
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Gone",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    429: "TooManyRequests",
    500: "InternalServerError",
    502: "BadGateway",
    503: "ServiceUnavailable",
}
_SHOWN_PROBLEMS = 20
#: Query parameters whose Python name is another.
_WIRE_NAMES = {"per_page": "perPage", "in_state": "state"}


class Gone(kit.GPUStackError):
    """The events asked for were removed; the watch must begin anew."""


class BadGateway(kit.GPUStackError):
    """Another machine that is needed for the answer does not give one."""


def status_of(error: Exception) -> int:
    """Return the HTTP status for ``error``; 500 for what nobody foresaw."""
    if isinstance(error, Gone):
        return 410
    if isinstance(error, BadGateway):
        return 502
    if isinstance(error, HTTPException):
        return error.status_code
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Return the answer for anything raised on the way; the unforeseen is logged here, once."""
    status = status_of(error)
    if status >= 500 and not isinstance(error, kit.GPUStackError):
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    headers = {}
    if isinstance(error, kit.Throttled | kit.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 405 and isinstance(error, HTTPException):
        headers.update(error.headers or {})
    return Response(
        body(status, message_of(request, error)),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def body(status: int, message: str) -> bytes:
    """Return the document of an error."""
    return json.dumps({"code": status, "reason": _REASONS.get(status, "Error"), "message": message}).encode()


def message_of(request: Request[Any, Any, Any], error: Exception) -> str:
    """Return the line a user reads."""
    path = request.url.path
    if isinstance(error, kit.GPUStackError):
        return error.message
    if isinstance(error, NotFoundException):
        return f"there is no {path}; see /docs for the paths there are"
    if isinstance(error, MethodNotAllowedException):
        return f"{path} does not take {request.method}"
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        return "; ".join(_parameter(each) for each in error.extra)
    if isinstance(error, HTTPException) and error.status_code == 413:
        return f"the request body is larger than {human_bytes(MAX_BODY)}"
    if isinstance(error, HTTPException) and error.status_code < 500:
        return error.detail
    return "the server failed to answer; its log says why"


def _parameter(problem: dict[str, str]) -> str:
    if problem["key"] == "data":
        return "the request body is empty, which is not valid JSON; send a JSON object"
    return f"query parameter {_WIRE_NAMES.get(problem['key'], problem['key'])}: {problem['message']}"


def invalid(error: ValidationError) -> kit.InvalidInput:
    """Return all problems of a request body as one line that names each field and what is expected of it."""
    problems = [_problem(each) for each in error.errors(include_url=False, include_context=False)]
    shown = problems[:_SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return kit.InvalidInput("; ".join(shown))


def _problem(problem: Any) -> str:
    kind, where = problem["type"], ".".join(str(part) for part in problem["loc"])
    if kind == "json_invalid":
        return f"the request body is not valid JSON: {problem['msg'].removeprefix('Invalid JSON: ')}"
    if kind == "extra_forbidden":
        return f"{where}: there is no such field"
    if kind == "missing":
        return f"{where}: is required"
    if kind in ("model_type", "model_attributes_type") and not where:
        return "the request body must be a JSON object"
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if not where:
        return text
    return f"{where}: {text}{_given(problem.get('input'))}"


def _given(value: Any) -> str:
    """Return what was sent instead, when it is short and no secret by its type."""
    if isinstance(value, bool | int | float) or value is None:
        return f" (not {json.dumps(value)})"
    return ""
