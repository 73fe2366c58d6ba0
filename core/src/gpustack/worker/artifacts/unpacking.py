"""Takes an archive apart of which nothing is believed. Blocks.

Zip and tar (plain, gzip, bzip2, xz). Everything is made below one new folder: names with ``..``, absolute ones, links
that lead out of it, devices, and more than :class:`Bounds` allow are refused before they do anything.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from gpustack.kit.text import human_bytes

_PIECE = 1 << 20
#: The longest target of a link that any system takes.
_LONGEST_LINK = 4096


class BadArchive(Exception):
    """Not an archive, a damaged one, or one that wants what no archive may; why, in a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an archive may hold at most."""

    #: Bytes of all files together.
    total: int = 32 << 30
    entries: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: str
    kind: Literal["folder", "file", "link", "copy", "other"]
    mode: int
    #: Of a link, as it is written; of a copy (a hard link), the name of the other file.
    target: str = ""
    #: Opens a file's content.
    content: Callable[[], IO[bytes]] | None = None


def unpack(archive: Path, folder: Path, bounds: Bounds | None = None) -> None:
    """Make what is in ``archive`` below ``folder``, which is made and must not exist.

    Files are owned by us, keep of their modes whether they can be executed, and are on disk at the end. Raises
    BadArchive, and OSError when the disk does not take it; what was made by then stays.
    """
    bounds = bounds or Bounds()
    folder.mkdir(parents=True)
    try:
        with _opened(archive) as entries:
            _Unpacking(folder, bounds).run(entries)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, RuntimeError) as error:
        # RuntimeError: an encrypted one; NotImplementedError, a compression that Python does not know, is one too.
        raise BadArchive(f"it is damaged ({error})") from error


class _Unpacking:
    def __init__(self, folder: Path, bounds: Bounds) -> None:
        self._folder = folder
        self._bounds = bounds
        self._left = bounds.total
        self._made: set[PurePosixPath] = set()

    def run(self, entries: Iterator[_Entry]) -> None:
        links: list[tuple[PurePosixPath, _Entry]] = []
        for count, entry in enumerate(entries, start=1):
            if count > self._bounds.entries:
                raise BadArchive(f"it has more than {self._bounds.entries} entries")
            name = _inside(entry.name)
            if name is None:
                raise BadArchive(f"{entry.name!r} in it is no name below a folder")
            if name == PurePosixPath() and entry.kind == "folder":
                continue
            self._take(name, entry, links)
        # Last: nothing is ever written through a link.
        for name, entry in links:
            self._link(name, entry.target)
        # Once more: what a link means changes with those that are made after it.
        for name, entry in links:
            self._leads_inside(self._folder / name, name, entry.target)

    def _take(self, name: PurePosixPath, entry: _Entry, links: list[tuple[PurePosixPath, _Entry]]) -> None:
        match entry.kind:
            case "folder":
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            case "file":
                assert entry.content is not None
                with entry.content() as source:
                    self._write(name, source, entry.mode)
            case "copy":
                other = _inside(entry.target)
                if other is None or other not in self._made:
                    raise BadArchive(
                        f"{entry.name!r} in it is a link to {entry.target!r}, which is not there"
                    )
                with (self._folder / other).open("rb") as source:
                    self._write(name, source, entry.mode)
            case "link":
                self._once(name)
                links.append((name, entry))
            case "other":
                raise BadArchive(f"{entry.name!r} in it is neither a file nor a folder nor a link")

    def _once(self, name: PurePosixPath) -> None:
        if name in self._made or not name.parts:
            raise BadArchive(f"{str(name)!r} is in it twice")
        self._made.add(name)

    def _write(self, name: PurePosixPath, source: IO[bytes], mode: int) -> None:
        self._once(name)
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # x: whatever lies there already is not ours to follow.
        with path.open("xb") as target:
            while piece := source.read(_PIECE):
                self._left -= len(piece)
                if self._left < 0:
                    raise BadArchive(f"its files are larger than {human_bytes(self._bounds.total)}")
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        path.chmod(0o755 if mode & 0o111 else 0o644)

    def _link(self, name: PurePosixPath, target: str) -> None:
        """Make a link to what lies in the archive; where the system has none, a copy of it."""
        if not target or PurePosixPath(target).is_absolute() or "\\" in target or ":" in target:
            raise BadArchive(f"{str(name)!r} in it is a link to {target!r}, which leads out of it")
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        meant = self._leads_inside(path.parent / target, name, target)
        try:
            path.symlink_to(target)
        except NotImplementedError:
            shutil.copyfile(meant, path)

    def _leads_inside(self, path: Path, name: PurePosixPath, target: str) -> Path:
        """Return where ``path`` leads to in the end, through whatever links there are."""
        meant, root = path.resolve(), self._folder.resolve()
        if not (meant.is_relative_to(root) and path.parent.resolve().is_relative_to(root)):
            raise BadArchive(f"{str(name)!r} in it is a link to {target!r}, which leads out of it")
        return meant


def _inside(name: str) -> PurePosixPath | None:
    """Return the place below the folder that ``name`` means; None for one that may mean another."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ":" in name.partition("/")[0]:
        return None
    path = PurePosixPath(name)
    return None if ".." in path.parts else path


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Entry]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _of_zip(opened)
        return
    try:
        tar = tarfile.open(archive)  # noqa: SIM115  # it is closed below
    except tarfile.ReadError:
        raise BadArchive("it is no zip and no tar archive") from None
    with tar:
        yield _of_tar(tar)


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.flag_bits & 0x1:
            raise BadArchive(f"{info.filename!r} in it is encrypted")
        # Python takes the system's separators for /, and cuts at NUL; the name as it is written counts.
        name = info.orig_filename
        if name.endswith("/"):
            yield _Entry(name=name, kind="folder", mode=mode)
        elif stat.S_ISLNK(mode):
            if info.file_size > _LONGEST_LINK:
                raise BadArchive(f"{name!r} in it is a link of {info.file_size} bytes")
            with archive.open(info) as source:
                target = source.read(_LONGEST_LINK).decode("utf-8", "surrogateescape")
            yield _Entry(name=name, kind="link", mode=mode, target=target)
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            yield _Entry(name=name, kind="file", mode=mode, content=partial(archive.open, info))
        else:
            yield _Entry(name=name, kind="other", mode=mode)


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for info in archive:
        if info.isdir():
            yield _Entry(name=info.name, kind="folder", mode=info.mode)
        elif info.issym():
            yield _Entry(name=info.name, kind="link", mode=info.mode, target=info.linkname)
        elif info.islnk():
            yield _Entry(name=info.name, kind="copy", mode=info.mode, target=info.linkname)
        elif info.isreg():
            yield _Entry(
                name=info.name, kind="file", mode=info.mode, content=partial(_content, archive, info)
            )
        else:
            yield _Entry(name=info.name, kind="other", mode=info.mode)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(info)
    if content is None:
        raise BadArchive(f"{info.name!r} in it has no content")
    return content
