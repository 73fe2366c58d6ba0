"""Which database a URL is for, and how it is reached."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpustack.db.postgresql import PostgreSQL
from gpustack.extensions.catalogue import Catalogue, Registered
from gpustack.kit.errors import SettingsError
from gpustack.plugin.contracts import Host, NoSettings
from gpustack.plugin.databases import Database, DatabaseAddress, DatabaseConnection, Session
from gpustack.plugin.errors import Refused

log = logging.getLogger(__name__)

#: What the database sees of who is connected.
APPLICATION = "gpustack"
#: Seconds after which a statement is given up: nothing here takes long, so then the database hangs.
STATEMENT_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Source:
    """A database and how it is reached. ``application`` is what it sees of who is connected."""

    database: Database[Any]
    address: DatabaseAddress
    application: str = APPLICATION

    @property
    def where(self) -> str:
        """The database as messages name it, without its password."""
        return self.address.where

    @property
    def session(self) -> Session:
        """How connections are opened."""
        return Session(application=self.application, statement_timeout=STATEMENT_LIMIT)

    async def open(self) -> DatabaseConnection:
        """Open a connection; raises as the plugin does."""
        return await self.database.connect(self.address, self.session)


def database_for(url: str, load: Callable[[], Catalogue], host: Host) -> Database[Any]:
    """Return the database for ``url``, not entered yet. SettingsError for what is wrong with it, or with its settings.

    ``load`` gives the installed plugins; what comes with the core needs none to be loaded.
    """
    if _scheme(url) in PostgreSQL.schemes:
        return PostgreSQL(NoSettings(), host)
    catalogue = load()
    try:
        return catalogue.make(_registered(_scheme(url), catalogue), host)
    except Refused as error:
        raise SettingsError(f"--database-url {error.message}") from error


def source_of(url: str, database: Database[Any] | None = None, application: str = APPLICATION) -> Source:
    """Return what ``url`` names, by way of ``database``; PostgreSQL without one. SettingsError in one line."""
    if database is None:
        database = PostgreSQL(NoSettings(), Host(log=log, data_dir=Path(), bin_dir=Path()))
    try:
        return Source(database, _address(url, database), application)
    except Refused as error:
        raise SettingsError(f"--database-url {error.message}") from error


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _registered(scheme: str, catalogue: Catalogue) -> Registered[Database[Any]]:
    found = [each for each in catalogue.databases.values() if scheme in each.cls.schemes]
    if len(found) > 1:
        both = " and ".join(f"{each.plugin} ({each.distribution})" for each in found)
        raise Refused(f"starts with {scheme}://, which {both} both claim; uninstall one of them")
    if found:
        return found[0]
    known = sorted(scheme for each in catalogue.databases.values() for scheme in each.cls.schemes)
    there = ", ".join(f"{each}://" for each in known) or "none"
    failed = "; `gpustack plugins list` tells which plugins failed" if catalogue.failures else ""
    raise Refused(f"starts with {scheme}://, for which no plugin is installed; there are {there}{failed}")


def _address(url: str, database: Database[Any]) -> DatabaseAddress:
    try:
        return database.address(url)
    except Refused:
        raise
    except Exception as error:
        # Without the error's own words, which may hold the password.
        log.debug("%s cannot read the URL", database.name, exc_info=True)
        raise Refused(f"cannot be read by the database {database.name} ({type(error).__name__})") from error
