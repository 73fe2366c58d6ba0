"""The database is a plugin's: found by the scheme of its URL, with its settings, in one line when that does not work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar, Self

import pytest
from pydantic import BaseModel

from gpustack.db.postgresql import PostgreSQL
from gpustack.db.source import database_for, source_of
from gpustack.extensions import Catalogue, Failure, Registered
from gpustack.kit.errors import SettingsError
from gpustack.plugin import DatabaseAddress, Host
from support.api import running_api

HOST = Host(log=logging.getLogger("test"), data_dir=Path("/d"), bin_dir=Path("/b"))


class AcmeSettings(BaseModel):
    acme_secret: str = ""


class AcmeDb(PostgreSQL):
    """Somebody's database that speaks PostgreSQL's protocol; it counts how often it was entered and left."""

    name = "acme"
    settings_type: ClassVar[type[BaseModel]] = AcmeSettings
    schemes = ("acme",)
    lives: ClassVar[list[str]] = []

    async def __aenter__(self) -> Self:
        self.lives.append(f"entered with {self.settings.acme_secret}")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.lives.append("left")

    def address(self, url: str) -> DatabaseAddress:
        if "ouch" in url:
            raise KeyError(url)
        return super().address(url.replace("acme://", "postgresql://"))


def a_catalogue(*classes: type[PostgreSQL], **given: str) -> Catalogue:
    catalogue = Catalogue(given=given)
    for number, cls in enumerate((PostgreSQL, *classes)):
        catalogue.databases[f"{cls.name}{number}"] = Registered(
            cls=cls, plugin=f"{cls.name}-{number}", distribution="acme-dist", version="1"
        )
    return catalogue


async def test_a_server_lives_in_a_plugins_database(
    migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcmeDb, "lives", [])
    monkeypatch.setattr("support.api.a_catalogue", lambda: a_catalogue(AcmeDb, acme_secret="s3cret"))
    async with running_api(migrated_url.replace("postgresql://", "acme://"), tmp_path) as api:
        assert (await api.admin.get("/v2/users/me")).json()["username"] == "admin"
        assert AcmeDb.lives == ["entered with s3cret"]
    assert AcmeDb.lives[-1] == "left"


def test_what_no_plugin_speaks_is_named_with_those_there_are() -> None:
    catalogue = a_catalogue(AcmeDb)
    catalogue.failures.append(
        Failure(plugin="mysql", distribution="d", version="1", stage="import", error="no such module")
    )
    with pytest.raises(SettingsError) as raised:
        database_for("mysql://u:very-secret@h/d", lambda: catalogue, HOST)
    assert str(raised.value) == (
        "--database-url starts with mysql://, for which no plugin is installed; there are acme://, postgres://, "
        "postgresql://; `gpustack plugins list` tells which plugins failed"
    )


def test_a_scheme_of_two_plugins_is_nobodys() -> None:
    with pytest.raises(
        SettingsError, match=r"which acme-1 .* and acme-2 .* both claim; uninstall one of them"
    ):
        database_for("acme://h/d", lambda: a_catalogue(AcmeDb, AcmeDb), HOST)


def test_what_comes_with_the_core_loads_no_plugin() -> None:
    def load() -> Catalogue:
        raise AssertionError("the plugins were loaded")

    assert type(database_for("postgresql://h/d", load, HOST)) is PostgreSQL


def test_a_plugin_that_stumbles_over_the_url_shows_nothing_of_it() -> None:
    database = database_for("acme://h/d", lambda: a_catalogue(AcmeDb), HOST)
    with pytest.raises(SettingsError) as raised:
        source_of("acme://u:very-secret@ouch/d", database)
    assert str(raised.value) == "--database-url cannot be read by the database acme (KeyError)"
