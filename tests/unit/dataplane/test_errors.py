"""Every error has OpenAI's shape, wherever it comes from."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gpustack.dataplane import Balancer, InferenceApp, Principal, RoutingTable, Upstream
from gpustack.kit.errors import Conflict, Forbidden, GPUStackError, Throttled, Unavailable


def app_whose_fallback_raises(error: BaseException) -> InferenceApp:
    async def fallback(scope: Any) -> None:
        raise error

    return InferenceApp(RoutingTable, Upstream(), Balancer(), fallback=fallback)


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (Unavailable("the database is away", retry_after=1.2), 503, "server_error", "2"),
        (Unavailable("the database is away", retry_after=0), 503, "server_error", "1"),
        (Throttled("too many", retry_after=30), 429, "rate_limit_error", "30"),
        (Forbidden("not you"), 403, "permission_error", None),
        (Conflict("not now"), 409, "invalid_request_error", None),
        (GPUStackError("something else"), 500, "server_error", None),
    ],
)
async def test_trouble_with_the_lookup_of_who_asks(
    call: Any, error: GPUStackError, status: int, kind: str, retry_after: str | None
) -> None:
    answered = await call(app_whose_fallback_raises(error), {}, key="")

    assert (answered.status, answered.error["type"]) == (status, kind)
    assert answered.error["message"] == str(error)
    assert answered.headers.get("retry-after") == retry_after
    assert answered.headers["x-request-id"]


async def test_what_nobody_foresaw_is_logged_once_and_told_without_details(
    call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answered = await call(app_whose_fallback_raises(ZeroDivisionError("secret")), {}, key="")

    assert (answered.status, answered.error["code"]) == (500, "internal_error")
    assert "secret" not in answered.error["message"]
    [record] = caplog.records
    assert record.exc_info is not None
    assert answered.headers["x-request-id"] in record.getMessage()


async def test_an_answer_that_has_begun_is_not_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        raise OSError("the socket broke")

    async def receive() -> Any:
        raise AssertionError

    async def anybody(scope: Any) -> Principal:
        return Principal(user_id=1, username="u")

    app = InferenceApp(RoutingTable, Upstream(), Balancer(), fallback=anybody)
    with caplog.at_level(logging.ERROR):
        await app({"method": "GET", "path": "/v1/models", "headers": []}, receive, send)

    assert len(sent) == 1
    assert len(caplog.records) == 1


async def test_a_cancellation_passes(call: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call(app_whose_fallback_raises(asyncio.CancelledError()), {}, key="")
