"""The log of an engine: a file that it appends to itself, and what is read of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

NAME = "engine.log"
PREVIOUS = "engine.log.previous"

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
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o640)


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
        for name in (NAME, PREVIOUS):
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _age(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
