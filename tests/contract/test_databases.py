"""PostgreSQL keeps the contract of databases, in a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gpustack.db.postgresql import PostgreSQL
from gpustack.testing import DatabaseSuite
from support.postgres import PostgresServer


class TestPostgreSQL(DatabaseSuite):
    extension = PostgreSQL

    @pytest.fixture
    def url(self, postgres_server: PostgresServer) -> Iterator[str]:
        """An empty database of the test's own."""
        name = asyncio.run(postgres_server.create_database())
        yield postgres_server.url(name)
        asyncio.run(postgres_server.drop_database(name))
