"""Restoring a backup: the whole of it, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gpustack.db import migrations
from gpustack.db.backup import archive
from gpustack.db.backup.archive import Manifest
from gpustack.db.backup.write import KEPT_FILES
from gpustack.db.connection import inside
from gpustack.db.errors import translated
from gpustack.db.source import APPLICATION
from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, SettingsError
from gpustack.kit.paths import make_dir, sync_dir, write_atomic
from gpustack.plugin.databases import DatabaseConnection, DatabaseError, Trouble

#: Events of after the backup had numbers, and they may have been in a database that is gone. What any watcher has
#: seen lies below the first number after this leap, so all are told to read the lists again.
_LEAP = 1_000_000_000
#: The same for ids: engines and logs of instances that the backup does not know may still go by theirs.
_LEAP_OF_IDS = 100_000
_STAGING = ".restore-"
_ROWS = 500
_LONG = 3600.0
#: Seconds to wait for whoever else works on a table.
_LOCKED = 5.0
#: What rows that do not fit their table raise.
_UNFIT = frozenset({Trouble.BAD_VALUE, Trouble.UNIQUE, Trouble.DANGLING, Trouble.OTHER})


async def load(
    connection: DatabaseConnection, where: str, data_dir: Path, path: Path, *, replace: bool
) -> Manifest:
    """Restore ``path`` into the database of ``connection`` and the small files into ``data_dir``.

    The database must be empty, or ``replace`` given; an older backup is brought up to this version. Raises one line:
    NewerData, Conflict for what is there already or in use, InvalidInput for a file that is no complete backup. Then
    everything is as it was; only when the files cannot be put in place at the very end, the database is restored
    already, and the line says so.
    """
    manifest = await asyncio.to_thread(archive.verify, path)
    migrations.refuse_newer(manifest.steps, str(path))
    with _staged(path, data_dir, replace=replace) as put_in_place:
        with translated(where):
            async with inside(connection, lock_timeout=_LOCKED):
                given = await _clear(connection, where, replace=replace)
                await migrations.apply(connection, manifest.steps, where)
                await _fill(connection, manifest, path)
                every = {name for name, _ in migrations.STEPS}
                await migrations.apply(connection, every - set(manifest.steps), where)
                await _count_on(connection, manifest, given)
        try:
            await asyncio.to_thread(put_in_place)
        except GPUStackError as error:
            raise GPUStackError(
                f"the database is restored, the files in {data_dir} are not all ({error.message}); "
                "run it again with --replace"
            ) from error
    return manifest


def discard_staged(data_dir: Path) -> None:
    """Remove what restores that were killed have left in ``data_dir``, which no other restore may work on."""
    for left in data_dir.glob(f"{_STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Given:
    """The last numbers that a database has given: to its events, and to the rows of each table."""

    event: int
    ids: dict[str, int]


async def _clear(connection: DatabaseConnection, where: str, *, replace: bool) -> _Given:
    """Leave no table of ours, and return how far those that were there had counted; Conflict unless asked for."""
    if await connection.others(APPLICATION):
        raise Conflict(f"a GPUStack works on {where}; stop it first")
    present = await connection.tables()
    steps = await migrations.applied_steps(connection)
    migrations.refuse_newer(steps, where)
    if not steps and set(present) - {migrations.LEDGER}:
        raise SettingsError(
            f"{where} holds tables of something else ({present[0]}); give GPUStack a database of its own"
        )
    if steps and not replace:
        raise Conflict(f"{where} holds data already; --replace takes it away, and keeps a backup of it")
    given = await _given(connection, migrations.tables_after(steps))
    for table in [*reversed(migrations.tables_after(steps)), migrations.LEDGER]:
        await connection.fetch(f'DROP TABLE IF EXISTS "{table}"')
    return given


async def _given(connection: DatabaseConnection, tables: Sequence[str]) -> _Given:
    ids = {}
    for table in tables:
        if (last := await connection.last_id(table)) is not None:
            ids[table] = last
    event = (
        (await connection.fetch("SELECT MAX(value) AS last FROM event_counter"))[0]["last"] if tables else 0
    )
    return _Given(event or 0, ids)


async def _fill(connection: DatabaseConnection, manifest: Manifest, path: Path) -> None:
    known = set(migrations.tables_after(manifest.steps))
    for table in manifest.tables:
        if table.name not in known:
            raise InvalidInput(f"{path} has a table {table.name}, which is none of GPUStack's")
        # What the step itself has put there is in the backup, too.
        await connection.fetch(f'DELETE FROM "{table.name}"')  # noqa: S608  # a name of our own
    for name, lines in archive.tables(path):
        if name not in known:
            raise InvalidInput(f"{path} has a table {name}, which is none of GPUStack's")
        await _insert(connection, path, name, iter(lines))


async def _insert(connection: DatabaseConnection, path: Path, table: str, lines: Iterator[bytes]) -> None:
    types = await connection.columns(table)
    batch: list[dict[str, Any]] = []
    try:
        for line in lines:
            batch.append(_row(line, types))
            if len(batch) == _ROWS:
                await _store(connection, table, batch)
                batch = []
        if batch:
            await _store(connection, table, batch)
    except (ValueError, TypeError, KeyError, DatabaseError) as error:
        if isinstance(error, DatabaseError) and error.trouble not in _UNFIT:
            raise
        why = " ".join(str(error).split())
        raise InvalidInput(f"{path}: table {table} cannot be restored ({why}); use another backup") from error


def _row(line: bytes, types: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    for name, value in row.items():
        if value is not None and types[name].startswith("timestamp"):
            row[name] = datetime.fromisoformat(value)
    return row


async def _store(connection: DatabaseConnection, table: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    columns = ", ".join(f'"{name}"' for name in names)
    holes = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    statement = f'INSERT INTO "{table}" ({columns}) VALUES ({holes})'  # noqa: S608  # names out of the catalogue
    await connection.fetch_each(statement, [[row[name] for name in names] for row in rows], timeout=_LONG)


async def _count_on(connection: DatabaseConnection, manifest: Manifest, given: _Given) -> None:
    """Have new rows and events get numbers that none had before, in the backup, here, or in between."""
    kept = {table.name: table.last_id for table in manifest.tables}
    for table in migrations.tables_after({name for name, _ in migrations.STEPS}):
        if await connection.last_id(table) is None:
            continue
        rows = await connection.fetch(f'SELECT COALESCE(MAX(id), 0) AS highest FROM "{table}"')  # noqa: S608
        last = max(kept.get(table, 0), given.ids.get(table, 0), rows[0]["highest"]) + _LEAP_OF_IDS
        await connection.count_on(table, last)
    await connection.fetch(
        "UPDATE event_counter SET value = GREATEST(value, $1::bigint) + $2::bigint", (given.event, _LEAP)
    )


# Files ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _staged(path: Path, data_dir: Path, *, replace: bool) -> Iterator[Callable[[], None]]:
    """Write the small files beside their places and yield what puts them there; nothing is left behind."""
    staging = Path(tempfile.mkdtemp(dir=make_dir(data_dir, what="data directory"), prefix=_STAGING))
    try:
        with archive.writing(staging):
            names = [
                _stage(staging, data_dir, name, content, replace=replace)
                for name, content in archive.files(path)
            ]

        def put_in_place() -> None:
            with archive.writing(data_dir):
                for name in names:
                    (data_dir / name).parent.mkdir(mode=0o700, exist_ok=True)
                    (staging / name).replace(data_dir / name)
                for folder in {(data_dir / name).parent for name in names}:
                    sync_dir(folder)

        yield put_in_place
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _stage(staging: Path, data_dir: Path, name: str, content: bytes, *, replace: bool) -> str:
    folder, _, file = name.rpartition("/")
    ours = (folder in KEPT_FILES) if folder else (file in KEPT_FILES)
    if not ours or not file or file.startswith(".") or os.sep in file:
        raise InvalidInput(f"the backup has a file {name}, which is none of GPUStack's; use another one")
    present = data_dir / name
    if present.is_dir():
        raise GPUStackError(f"{present} is a directory, and the backup has a file there; move it away")
    if present.exists() and not replace and present.read_bytes() != content:
        raise Conflict(f"{present} exists already, with other content; --replace replaces it")
    (staging / folder).mkdir(mode=0o700, exist_ok=True)
    write_atomic(staging / name, content, mode=0o600)
    return name
