"""``gpustack backup`` and ``restore``: how they reach the database, whether GPUStack runs or not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpustack.app.rundir import RunDir
from gpustack.db import Store, backup
from gpustack.db.backup import Manifest, Written
from gpustack.db.embedded import EmbeddedPostgres
from gpustack.db.source import database_for
from gpustack.extensions import Catalogue, load_catalogue
from gpustack.kit.errors import Conflict, GPUStackError, NotFound
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import make_dir
from gpustack.plugin import Database, Host
from gpustack.settings.load import load

log = logging.getLogger(__name__)

#: Another name than that of servers, which must not work on a database that is restored.
_RESTORE = "gpustack restore"
#: Seconds for a database that is just starting.
_WAIT = 10.0


async def write(data_dir: Path, database_url: str, target: Path) -> Written:
    """Back up the GPUStack of ``data_dir`` into ``target``; one that runs goes on meanwhile.

    A folder as ``target`` gets a file named after the time. Without ``database_url`` it is the embedded database,
    which is started for the while when it does not run. Raises one line, as GPUStackError.
    """
    target = _target(target)
    async with (
        _reached(data_dir, database_url) as url,
        _database(url, data_dir) as database,
        await Store.open(url, database, wait=_WAIT) as store,
    ):
        return await backup.write(store, data_dir, target)


def _database(url: str, data_dir: Path) -> Database[Any]:
    """Return the database that ``url`` is for; a plugin's has the settings that the environment gives."""

    def plugins() -> Catalogue:
        found = load_catalogue()
        found.given = load({}, found.options).plugins
        return found

    return database_for(url, plugins, Host(log=log, data_dir=data_dir, bin_dir=data_dir / "bin"))


def _target(wanted: Path) -> Path:
    if wanted.is_dir():
        return wanted / f"gpustack-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz"
    if not wanted.parent.is_dir():
        raise NotFound(f"there is no directory {wanted.parent}")
    return wanted


@asynccontextmanager
async def _reached(data_dir: Path, database_url: str) -> AsyncIterator[str]:
    """Yield the URL of the database of ``data_dir``, running at least until the end of the block."""
    if database_url:
        yield database_url
        return
    postgres = EmbeddedPostgres(data_dir, data_dir / "log")
    if not postgres.data.is_dir():
        raise NotFound(
            f"data directory {data_dir} holds no database; name another --data-dir, or the --database-url that is used"
        )
    lock = FileLock(data_dir / "gpustack.lock")
    try:
        free = lock.acquire()
    except OSError as error:
        raise GPUStackError(f"{lock.path} cannot be opened: {error.strerror}; change its owner") from error
    if not free:
        yield _running(postgres, data_dir)
        return
    try:
        async with _started(postgres) as url:
            yield url
    finally:
        lock.release()


def _running(postgres: EmbeddedPostgres, data_dir: Path) -> str:
    from gpustack.client.local import read_state

    state = read_state(data_dir)
    if state is not None and state.running and "postgres" not in state.children:
        raise Conflict(f"the GPUStack of {data_dir} uses another database; name it with --database-url")
    if not (url := postgres.recorded_url()):
        raise GPUStackError(f"the GPUStack of {data_dir} is just starting or stopping; try again")
    return url


@asynccontextmanager
async def _started(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    await postgres.prepare()
    try:
        await postgres.start()
        yield postgres.url
    finally:
        await postgres.stop()


async def restore(
    data_dir: Path, database_url: str, source: Path, *, replace: bool
) -> tuple[Manifest, Path | None]:
    """Restore ``source`` as the GPUStack of ``data_dir``, which must not run.

    Returns what was restored, and the backup of what it has replaced. Raises one line; then all is as it was, unless
    the line says that only files are missing.
    """
    # Before anything is made or started: most mistakes are about the file.
    manifest = backup.verify(source)
    make_dir(data_dir, what="data directory")
    claimed = RunDir(data_dir)
    claimed.claim()
    try:
        backup.discard_staged(data_dir)
        if database_url:
            return manifest, await _load(data_dir, database_url, source, replace=replace)
        async with _started(EmbeddedPostgres(data_dir, data_dir / "log")) as url:
            return manifest, await _load(data_dir, url, source, replace=replace)
    finally:
        claimed.release()


async def _load(data_dir: Path, database_url: str, source: Path, *, replace: bool) -> Path | None:
    async with _database(database_url, data_dir) as database:
        async with await Store.open(database_url, database, wait=_WAIT, application=_RESTORE) as store:
            fresh = (await store.missing_steps()).fresh
            kept = (
                await backup.automatic(store, data_dir, "before-restore") if replace and not fresh else None
            )
            connection = await store.connect()
        try:
            await backup.load(connection, store.where, data_dir, source, replace=replace)
        finally:
            connection.terminate()
    return kept
