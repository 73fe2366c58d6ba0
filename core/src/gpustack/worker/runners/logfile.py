"""The log of an engine: a file that it appends to itself, and what is read of it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Self

log = logging.getLogger(__name__)

NAME = "engine.log"
PREVIOUS = "engine.log.previous"
#: What a log held before it was begun anew because of its size.
OLDER = "engine.log.1"

#: Bytes after which the log of a running engine is begun anew.
MAX_SIZE = 64 << 20
#: A line's beginning is looked for this far back, not further.
_SCAN_BYTES = 16 << 20
_CHUNK = 64 << 10

_TAIL_BYTES = 32 << 10
_LINE = 400
#: Colours and cursor movements of terminals.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Folders of instances that no longer exist, kept for whoever asks why.
_KEPT_FOLDERS = 50


def log_path(log_dir: Path, instance_name: str) -> Path:
    """Return the file that the engine of this instance writes to. Names may hold slashes and colons."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", instance_name).lstrip(".") or "_"
    return log_dir / "instances" / safe / NAME


def open_fresh(path: Path) -> int:
    """Return a descriptor for appending to a new ``path``; the log of the start before is kept beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.replace(path.with_name(PREVIOUS))
    path.with_name(OLDER).unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o640)


def cap(path: Path, *, limit: int = MAX_SIZE) -> None:
    """Begin the log anew when it is larger than ``limit`` bytes; one older part is kept. There need not be a log.

    It is copied and emptied, since its engine keeps it open; lines of the very moment in between may be lost.
    """
    try:
        if path.stat().st_size <= limit:
            return
    except OSError:
        return
    older = path.with_name(OLDER)
    try:
        shutil.copyfile(path, older)
    except OSError as error:
        # A disk that is full needs the room all the more.
        older.unlink(missing_ok=True)
        log.warning("%s is begun anew, and what it held is lost: %s", path, error)
    try:
        os.truncate(path, 0)
    except OSError as error:
        log.warning("%s grows without end: %s", path, error)


class LogReader:
    """Reads a log piece by piece; closed by ``with``. All but opening may block as long as the disk does.

    Raises OSError when there is no log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)

    def skip_to(self, tail: int) -> None:
        """Go on where the last ``tail`` lines begin; -1: at the beginning."""
        self._position = _beginning(self._fd, tail)

    def read(self) -> bytes:
        """Return what comes next, a limited piece of it; nothing at the end, for now."""
        if os.fstat(self._fd).st_size < self._position:
            # It was begun anew because of its size.
            self._position = 0
        data = os.pread(self._fd, _CHUNK, self._position)
        self._position += len(data)
        return data

    def replaced(self) -> bool:
        """Tell whether the engine writes to another file by now."""
        try:
            return os.fstat(self._fd).st_ino != self._path.stat().st_ino
        except OSError:
            return True


def _beginning(fd: int, tail: int) -> int:
    """Return the byte where the last ``tail`` lines begin; a line that is being written counts as one.

    When they begin too far back to be looked for, fewer lines are taken.
    """
    if tail < 0:
        return 0
    end = os.lseek(fd, 0, os.SEEK_END)
    if tail == 0:
        return end
    first = max(0, end - _SCAN_BYTES)
    position, wanted, begins = end, tail, end
    if end and os.pread(fd, 1, end - 1) == b"\n":
        wanted += 1
    while position > first:
        start = max(first, position - _CHUNK)
        block = os.pread(fd, position - start, start)
        count = block.count(b"\n")
        if count >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return start + at + 1
        if count:
            begins = start + block.index(b"\n") + 1
        wanted -= count
        position = start
    if first == 0:
        return 0
    return begins if begins < end else first


def last_lines(path: Path, *, count: int = 15) -> str:
    """Return the last ``count`` lines in printable characters; nothing when there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read(_TAIL_BYTES)
    except OSError:
        return ""
    lines = data.decode("utf-8", "replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:] or lines
    shown = [line for each in lines if (line := _printable(each))]
    return "\n".join(shown[-count:])


def _printable(line: str) -> str:
    text = _ESCAPES.sub("", line)
    # A progress bar overwrites its line; what it last said is what counts.
    text = text.rstrip("\r").rpartition("\r")[2].replace("\t", "    ")
    return "".join(c for c in text if c.isprintable()).rstrip()[:_LINE]


def prune(log_dir: Path, *, in_use: set[Path], keep: int = _KEPT_FOLDERS) -> None:
    """Remove the oldest folders of instances that are gone, all but the newest ``keep``."""
    folders = [each for each in (log_dir / "instances").glob("*") if each.is_dir()]
    unused = [each for each in folders if each / NAME not in in_use]
    for folder in sorted(unused, key=_age)[: max(0, len(unused) - keep)]:
        for name in (NAME, PREVIOUS, OLDER):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
