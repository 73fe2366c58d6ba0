"""Writing a backup while everything runs: all tables as they were at one moment, and the small files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.db import migrations
from gpustack.db.backup.archive import TableEntry, Writer, discard_partial, verify
from gpustack.db.connection import inside
from gpustack.db.errors import translated
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.paths import make_dir
from gpustack.kit.text import human_bytes
from gpustack.plugin.databases import DatabaseConnection

if TYPE_CHECKING:
    from gpustack.db.store import Store

log = logging.getLogger(__name__)

#: Not backed up: whoever watches is told to read the lists again after a restore.
LEFT_OUT = frozenset({"events"})
#: What belongs to the database, below the data directory; a folder stands for the files in it.
KEPT_FILES = ("token", "initial_admin_password", "worker")
FOLDER = "backups"
_KEEP = 5
_PIECE = 1 << 20
_ROWS = 500
#: Larger files are none of ours.
_LARGEST_FILE = 1 << 20
_LONG = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A backup that was written; ``size`` in bytes."""

    path: Path
    rows: int
    size: int


async def write(store: Store, data_dir: Path, target: Path) -> Written:
    """Back ``store`` up with the small files of ``data_dir``.

    Conflict when ``target`` exists, NotFound when the database is empty, NewerData when a newer version wrote it, and
    GPUStackError in one line when the file cannot be written; then there is none. Uses little memory, whatever the
    size.
    """
    connection = await store.connect()
    try:
        with translated(store.where):
            async with inside(connection, snapshot=True):
                steps = await migrations.applied_steps(connection)
                migrations.refuse_newer(steps, store.where)
                if not steps:
                    raise NotFound(f"{store.where} holds nothing of GPUStack yet")
                with Writer(target, sorted(steps)) as writer:
                    wanted = [name for name in migrations.tables_after(steps) if name not in LEFT_OUT]
                    tables = [await _table(connection, writer, name) for name in wanted]
                    files = await asyncio.to_thread(_files, writer, data_dir)
                    size = await asyncio.to_thread(writer.finish, tables, files)
    finally:
        connection.terminate()
    return Written(path=target, rows=sum(table.rows for table in tables), size=size)


async def _table(connection: DatabaseConnection, writer: Writer, name: str) -> TableEntry:
    columns = await connection.columns(name)
    digest, rows, number = hashlib.sha256(), 0, 0
    async for lines, count in _pieces(connection, name, list(columns)):
        number += 1
        rows += count
        digest.update(lines)
        # Compressing is work for more than a moment, and a server may be busy on this loop.
        await asyncio.to_thread(writer.piece, name, number, lines)
    last = await connection.last_id(name) or 0
    return TableEntry(name=name, rows=rows, sha256=digest.hexdigest(), last_id=last)


async def _pieces(
    connection: DatabaseConnection, table: str, columns: list[str]
) -> AsyncIterator[tuple[bytes, int]]:
    """Yield the rows of a table as JSON lines, about 1 MiB of them and their number at a time."""
    selected = ", ".join(f'"{column}"' for column in columns)
    query = f'SELECT {selected} FROM "{table}" ORDER BY 1'  # noqa: S608  # names out of the catalogue
    piece, count = bytearray(), 0
    async for row in connection.stream(query, rows=_ROWS, timeout=_LONG):
        piece += json.dumps(dict(row), default=_plain, ensure_ascii=False).encode() + b"\n"
        count += 1
        if len(piece) >= _PIECE:
            yield bytes(piece), count
            piece, count = bytearray(), 0
    if count:
        yield bytes(piece), count


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in a backup")


def _files(writer: Writer, data_dir: Path) -> dict[str, str]:
    sums = {}
    for name in small_files(data_dir):
        with _reading(data_dir / name):
            content = (data_dir / name).read_bytes()
        writer.file(name, content)
        sums[name] = hashlib.sha256(content).hexdigest()
    return sums


def small_files(data_dir: Path) -> list[str]:
    """Return the names below ``data_dir`` of the files that belong to the database."""
    found = []
    for name in KEPT_FILES:
        place = data_dir / name
        with _reading(place):
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
            found += [str(each.relative_to(data_dir)) for each in inside if _is_ours(each)]
    return found


def _is_ours(path: Path) -> bool:
    usual = path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    return usual and path.stat().st_size <= _LARGEST_FILE


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in what the system refuses: nobody may take it for an error of the database."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise GPUStackError(f"{place} cannot be read: {error.strerror or error}; change its owner") from error


async def automatic(store: Store, data_dir: Path, why: str) -> Path:
    """Write a backup into ``<data_dir>/backups``, named after ``why`` and the time; the last five such are kept.

    When the newest of them holds just the same, that one is returned, and none is added: a start that fails again and
    again must not push the others out.
    """
    folder = make_dir(data_dir / FOLDER, what="directory of backups", mode=0o700)
    discard_partial(folder)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    # Their names end with the time.
    before = sorted(folder.glob(f"{why}-*.tar.gz"))
    done = await write(store, data_dir, folder / f"{why}-{stamp}.tar.gz")
    if bool(before) and await asyncio.to_thread(_are_alike, before[-1], done.path):
        done.path.unlink()
        log.info("%s: nothing has changed since", before[-1])
        return before[-1]
    for old in [*before, done.path][:-_KEEP]:
        old.unlink(missing_ok=True)
        log.info("%s: removed, the last %d are kept", old, _KEEP)
    log.info("%s: %d rows in %s", done.path, done.rows, human_bytes(done.size))
    return done.path


def _are_alike(one: Path, other: Path) -> bool:
    """Tell whether two backups are whole and hold the same."""
    try:
        first, second = verify(one), verify(other)
    except GPUStackError as error:
        log.warning("%s", error)
        return False
    return (first.steps, first.tables, first.files) == (second.steps, second.tables, second.files)
