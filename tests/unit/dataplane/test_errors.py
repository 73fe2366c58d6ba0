"""Every error has OpenAI's shape, wherever it comes from."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpustack.dataplane.gateway.asgi import GatewayApp, in_process
from gpustack.kit.errors import Conflict, Forbidden, GPUStackError, Throttled, Unavailable


@contextlib.asynccontextmanager
async def app_whose_fallback_raises(error: BaseException) -> AsyncIterator[GatewayApp]:
    async def fallback(scope: Any) -> None:
        raise error

    async with in_process(fallback=fallback) as app:
        yield app


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
    async with app_whose_fallback_raises(error) as app:
        answered = await call(app, {}, key="")

    assert (answered.status, answered.error["type"]) == (status, kind)
    assert answered.error["message"] == str(error)
    assert answered.headers.get("retry-after") == retry_after
    assert answered.headers["x-request-id"]


async def test_what_nobody_foresaw_is_logged_once_and_told_without_details(
    call: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with app_whose_fallback_raises(ZeroDivisionError("secret")) as app:
            answered = await call(app, {}, key="")

    assert (answered.status, answered.error["code"]) == (500, "internal_error")
    assert "secret" not in answered.error["message"]
    [record] = caplog.records
    assert record.exc_info is not None
    assert answered.headers["x-request-id"] in record.getMessage()


async def test_a_cancellation_passes(call: Any) -> None:
    async with app_whose_fallback_raises(asyncio.CancelledError()) as app:
        with pytest.raises(asyncio.CancelledError):
            await call(app, {}, key="")
