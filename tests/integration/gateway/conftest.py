"""The data path as a gateway of its own, and inside the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.gateway import Running, a_gateway, in_the_server


@pytest.fixture(params=[a_gateway, in_the_server], ids=["gateway", "in the server"])
async def running(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """Both, one after the other."""
    async with request.param(tmp_path) as gateway:
        yield gateway
