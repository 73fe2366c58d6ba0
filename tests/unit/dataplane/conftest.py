"""The data path called directly, without a server around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpustack.dataplane.gateway.asgi import GatewayApp


@dataclass
class Answered:
    """What the application sent."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


class Caller:
    """``await call(app, {"model": "tiny"})`` as a client that stays until it is answered."""

    async def __call__(
        self, app: GatewayApp, document: Any, *, path: str = "/v1/completions", key: str = "key"
    ) -> Answered:
        answered = Answered()
        body: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(document).encode()}]

        async def receive() -> dict[str, Any]:
            if body:
                return body.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answered.body += message["body"]
                answered.complete = not message.get("more_body", False)

        scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"",
            "headers": [
                (b"host", b"test"),
                *([(b"authorization", f"Bearer {key}".encode())] if key else []),
            ],
        }  # fmt: skip
        await app(scope, receive, send)
        return answered


@pytest.fixture
def call() -> Caller:
    return Caller()
