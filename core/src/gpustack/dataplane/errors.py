"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import json
import math
import re

from gpustack.kit import errors as kit

_STATUS: tuple[tuple[type[kit.GPUStackError], int, str], ...] = (
    (kit.InvalidInput, 400, "invalid_request"),
    (kit.Unauthenticated, 401, "invalid_api_key"),
    (kit.Forbidden, 403, "forbidden"),
    (kit.NotFound, 404, "not_found"),
    (kit.Conflict, 409, "conflict"),
    (kit.Throttled, 429, "rate_limit_exceeded"),
    (kit.Unavailable, 503, "unavailable"),
)


_ENGINE_MESSAGE = 2000
_CPP_EXCEPTION = re.compile(r"\[json\.exception[^\]]*\]\s*")


class ApiError(Exception):
    """An answer that is an error. ``retry_after`` is seconds, 0 for none."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int = 0,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.allow = allow

    def body(self) -> bytes:
        """Return the JSON document."""
        return json.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": _type(self.status),
                    "param": self.param,
                    "code": self.code,
                }
            }
        ).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with it."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after:
            headers.append((b"retry-after", str(self.retry_after).encode()))
        if self.allow:
            headers.append((b"allow", self.allow.encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def of(error: kit.GPUStackError) -> ApiError:
    """Return the answer for trouble that the rest of GPUStack has told in its own words."""
    found = ((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    status, code = next(found, (500, "internal_error"))
    wait = max(1, math.ceil(error.retry_after)) if isinstance(error, kit.Throttled | kit.Unavailable) else 0
    return ApiError(status, error.message, code=code, retry_after=wait)


def internal(request_id: str) -> ApiError:
    """Return the answer when something failed that nobody foresaw; the log has the rest under ``request_id``."""
    return ApiError(
        500,
        f"the server failed to answer; its log says why (request {request_id})",
        code="internal_error",
    )


def invalid_key() -> ApiError:
    """Return the refusal of a request without a valid credential."""
    return ApiError(
        401,
        "the API key is missing, wrong or expired; send one as `Authorization: Bearer gpustack_…`",
        code="invalid_api_key",
    )


def unknown_model(name: str) -> ApiError:
    """Return the refusal of a model that does not exist, or not for this caller: the two look alike."""
    return ApiError(
        404,
        f"the model {name!r} does not exist or this key may not use it; GET /v1/models lists those it may",
        code="model_not_found",
        param="model",
    )


def not_running(name: str, obstacle: str) -> ApiError:
    """Return the refusal of a model that no instance serves now."""
    return ApiError(503, f"model {name} {obstacle}; try again later", code="model_not_ready", retry_after=5)


def wrong_kind(name: str, categories: tuple[str, ...], path: str) -> ApiError:
    """Return the refusal of a request that this kind of model can never answer."""
    what = " and ".join(categories)
    return ApiError(
        400,
        f"model {name} is of the kind {what}, which does not serve {path}; GET /v1/models tells what each can do",
        code="unsupported_by_model",
        param="model",
    )


def unserved(name: str, path: str) -> ApiError:
    """Return the refusal of what a model's engine has no path for, which it tells in a way that helps nobody."""
    return ApiError(
        400,
        f"the engine of model {name} does not serve {path}; ask a model of another kind, or deploy this one with a "
        "backend that does",
        code="unsupported_by_model",
        param="model",
    )


def knows_no_path(content: bytes) -> bool:
    """Tell whether the body of an engine's 404 says only that: no such path. (Others say which model they lack.)"""
    return engine_message(content).rstrip(".").lower() in (
        "",
        "not found",
        "file not found",
        "404 page not found",
    )


def of_engine(status: int, content: bytes) -> ApiError:
    """Return an engine's own error in OpenAI's shape, whatever shape it came in.

    A 501 becomes a 400: the engine runs, and will never do what was asked, so that trying again is no use.
    """
    message = engine_message(content) or f"the engine answered with status {status}"
    if status == 501:
        return ApiError(400, message, code="unsupported_by_model")
    return ApiError(status, message, code="invalid_request" if status < 500 else "engine_error")


def engine_message(content: bytes) -> str:
    """Return what the body of an error says, whatever shape it has."""
    try:
        found = json.loads(content)
    except ValueError:
        return " ".join(content.decode(errors="replace").split())[:_ENGINE_MESSAGE]
    while isinstance(found, dict):
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), "")
    # The name of an exception class in the engine's source helps nobody.
    return _CPP_EXCEPTION.sub("", str(found))[:_ENGINE_MESSAGE]


def engine_failed(name: str, detail: str) -> ApiError:
    """Return the answer when the engine ended before it said anything."""
    return ApiError(502, f"the engine of model {name} {detail}; try again", code="engine_failed")
