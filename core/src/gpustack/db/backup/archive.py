"""The file of a backup: a ``.tar.gz`` whose members come in this order.

    gpustack-backup.json             what this is: format, version, time, the migration steps of the tables
    tables/models/000001.jsonl       rows as JSON objects, one a line; a table is one or more pieces of about 1 MiB
    files/token                      small files of the data directory
    manifest.json                    rows and SHA-256 of every table and file; without it the backup is not complete

Times are ISO 8601 with their zone; columns that hold JSON are text. It is written and read piece by piece.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from gpustack import __version__
from gpustack.kit.errors import Conflict, GPUStackError, InvalidInput, NewerData
from gpustack.kit.paths import sync_dir

FORMAT, FORMAT_VERSION = "gpustack-backup", 1
_HEAD, _MANIFEST = "gpustack-backup.json", "manifest.json"
#: The largest small file, manifest or first member.
_SMALL = 16 << 20
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEntry:
    """One table. ``last_id`` is the highest id that was ever given, 0 when none was or the table has none."""

    name: str
    rows: int
    sha256: str
    last_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup holds."""

    gpustack_version: str
    created_at: str
    steps: tuple[str, ...]
    tables: tuple[TableEntry, ...] = ()
    #: Name below the data directory and SHA-256.
    files: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The rows of all tables."""
        return sum(table.rows for table in self.tables)


class Writer:
    """Writes ``target`` so that it is complete or not there at all.

    with Writer(target, steps) as writer:
        writer.piece("models", 1, lines)
        writer.finish(tables, files)
    """

    def __init__(self, target: Path, steps: list[str]) -> None:
        self._target = target
        self._head = Manifest(
            gpustack_version=__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            steps=tuple(steps),
        )
        self._temporary = Path()
        self._file: IO[bytes]
        self._tar: tarfile.TarFile

    def __enter__(self) -> Self:
        if self._target.exists():
            raise Conflict(f"{self._target} exists already; name another file, or remove it")
        with writing(self._target):
            fd, name = tempfile.mkstemp(
                dir=self._target.parent, prefix=f".{self._target.name}.", suffix=_PARTIAL
            )
            self._temporary = Path(name)
            self._file = os.fdopen(fd, "wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w:gz", compresslevel=6)
            self._add(
                _HEAD, _json({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self._head)})
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def piece(self, table: str, number: int, lines: bytes) -> None:
        """Add a piece of a table."""
        with writing(self._target):
            self._add(f"tables/{table}/{number:06}.jsonl", lines)

    def file(self, name: str, content: bytes) -> None:
        """Add a small file."""
        with writing(self._target):
            self._add(f"files/{name}", content)

    def finish(self, tables: list[TableEntry], files: dict[str, str]) -> int:
        """Give the archive its name, complete and on disk; return its size in bytes."""
        manifest = {**asdict(self._head), "tables": [asdict(table) for table in tables], "files": files}
        with writing(self._target):
            self._add(_MANIFEST, _json(manifest))
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
            self._temporary.replace(self._target)
            sync_dir(self._target.parent)
        return size

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        member.mtime = int(datetime.now(UTC).timestamp())
        self._tar.addfile(member, io.BytesIO(data))


def discard_partial(folder: Path) -> None:
    """Remove what backups that were killed have left in ``folder``."""
    for left in folder.glob(f".*{_PARTIAL}"):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Name the file in what the system refuses."""
    try:
        yield
    except OSError as error:
        raise GPUStackError(f"{target} cannot be written: {error.strerror or error}") from error


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


# Reading ----------------------------------------------------------------------------------------------


def verify(path: Path) -> Manifest:
    """Read ``path`` to its end and return what it holds. Blocks.

    InvalidInput in one line when it is no backup, or a damaged or incomplete one; NewerData when its format is newer.
    """
    sums: dict[str, Any] = {}
    rows: dict[str, int] = {}
    manifest: Manifest | None = None
    for name, content in _members(path):
        if name == _MANIFEST:
            manifest = _manifest(path, content)
            continue
        kind, _, rest = name.partition("/")
        thing = f"tables/{rest.partition('/')[0]}" if kind == "tables" else name
        for line in _lines(path, content):
            sums.setdefault(thing, hashlib.sha256()).update(line)
            rows[thing] = rows.get(thing, 0) + 1
        sums.setdefault(thing, hashlib.sha256())
    if manifest is None:
        raise _damaged(path, "it ends before its manifest")
    _compare(path, manifest, {name: each.hexdigest() for name, each in sums.items()}, rows)
    return manifest


def _compare(path: Path, manifest: Manifest, sums: dict[str, str], rows: dict[str, int]) -> None:
    empty = hashlib.sha256().hexdigest()
    for table in manifest.tables:
        thing = f"tables/{table.name}"
        if sums.pop(thing, empty) != table.sha256 or rows.get(thing, 0) != table.rows:
            raise _damaged(path, f"table {table.name} is not what its manifest says")
    for name, digest in manifest.files.items():
        if sums.pop(f"files/{name}", "") != digest:
            raise _damaged(path, f"file {name} is not what its manifest says")
    if sums:
        raise _damaged(path, f"it has {next(iter(sums))}, which its manifest does not know")


def tables(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield each piece of each table in the order of the archive, as the table's name and its lines."""
    for name, content in _members(path):
        kind, _, rest = name.partition("/")
        if kind == "tables":
            yield rest.partition("/")[0], _lines(path, content)


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the small files by their names below the data directory."""
    for name, content in _members(path):
        kind, _, rest = name.partition("/")
        if kind == "files":
            with _reading(path):
                small = content.read(_SMALL)
            yield rest, small


def _lines(path: Path, content: IO[bytes]) -> Iterator[bytes]:
    with _reading(path):
        yield from content


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the members after the first, which is checked; the end of the compressed data is read as well."""
    with _reading(path), gzip.open(path, "rb") as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for number, member in enumerate(tar):
            content = tar.extractfile(member)
            if number == 0:
                _check_head(path, member.name, content)
            elif content is not None:
                yield member.name, content
        # The checksum of the whole comes last.
        while unpacked.read(1 << 20):
            pass


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error) or "it is cut off") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from error


def _check_head(path: Path, name: str, content: IO[bytes] | None) -> None:
    if name != _HEAD or content is None:
        raise InvalidInput(f"{path} is not a backup of GPUStack")
    head = _document(path, content)
    if head.get("format") != FORMAT:
        raise InvalidInput(f"{path} is not a backup of GPUStack")
    if not isinstance(head.get("format_version"), int) or head["format_version"] > FORMAT_VERSION:
        raise NewerData(
            f"{path} was written by GPUStack {head.get('gpustack_version')}, which is newer than this one "
            f"({__version__}); install that version"
        )


def _manifest(path: Path, content: IO[bytes]) -> Manifest:
    document = _document(path, content)
    try:
        entries = tuple(TableEntry(**each) for each in document.pop("tables"))
        return Manifest(**{**document, "steps": tuple(document["steps"]), "tables": entries})
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "its manifest cannot be understood") from error


def _document(path: Path, content: IO[bytes]) -> dict[str, Any]:
    try:
        with _reading(path):
            document = json.loads(content.read(_SMALL))
    except ValueError as error:
        raise _damaged(path, "a part of it is not JSON") from error
    if not isinstance(document, dict):
        raise _damaged(path, "a part of it is not an object")
    return document


def _damaged(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{path} is no complete backup of GPUStack ({why}); use another one")
