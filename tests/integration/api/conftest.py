from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gpustack.db import Store
from gpustack.server.auth.passwords import hash_now
from support.api import PASSWORD, Api, running_api


@pytest.fixture(scope="session")
def password_hash() -> str:
    return hash_now(PASSWORD)


@pytest_asyncio.fixture
async def api(migrated_url: str, password_hash: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with await Store.open(migrated_url) as store:
        await store.users.set_password(1, password_hash)
    async with running_api(migrated_url, tmp_path) as running:
        yield running
