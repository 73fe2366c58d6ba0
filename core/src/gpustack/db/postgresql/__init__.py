"""PostgreSQL 13 and later, through asyncpg: the database that comes with the core, by the same door as any other."""

from __future__ import annotations

from typing import ClassVar

from gpustack.db.postgresql.url import parse
from gpustack.plugin.contracts import NoSettings
from gpustack.plugin.databases import Database, DatabaseAddress, DatabaseConnection, DatabasePool, Session
from gpustack.plugin.hookspecs import hookimpl

#: What listeners are woken on.
CHANNEL = "gpustack_events"


class PostgreSQL(Database[NoSettings]):
    """PostgreSQL, or what speaks its protocol."""

    name = "postgresql"
    settings_type = NoSettings
    schemes: ClassVar[tuple[str, ...]] = ("postgresql", "postgres")
    # In the last statement it saves a round trip while the lock on the counter is held.
    wake_up = f"pg_notify('{CHANNEL}', '')"

    def address(self, url: str) -> DatabaseAddress:
        return parse(url)

    async def connect(self, address: DatabaseAddress, session: Session) -> DatabaseConnection:
        # The driver takes a while to import, and this module is loaded to list the plugins, too.
        from gpustack.db.postgresql.driver import connect

        return await connect(address, session)

    async def pool(
        self, address: DatabaseAddress, session: Session, *, least: int, most: int
    ) -> DatabasePool:
        from gpustack.db.postgresql.driver import open_pool

        return await open_pool(address, session, least=least, most=most)


@hookimpl
def register_databases() -> list[type[PostgreSQL]]:
    return [PostgreSQL]
