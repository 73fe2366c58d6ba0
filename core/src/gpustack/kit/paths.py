"""Where things lie on each operating system, and writing files so that no reader sees half of one."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from gpustack.kit.errors import GPUStackError

_UNFINISHED = ".tmp"
_WRITE_TEST = ".write-test-"


def default_data_dir() -> Path:
    """Return the data directory used when none is configured.

    Linux and macOS as root: ``/var/lib/gpustack``; as a user: ``$XDG_DATA_HOME/gpustack`` or
    ``~/.local/share/gpustack`` (macOS: ``~/Library/Application Support/gpustack``); Windows: ``%APPDATA%``.
    """
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", str(_home()))) / "gpustack"
    if os.geteuid() == 0:
        return Path("/var/lib/gpustack")
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "gpustack"
    base = os.environ.get("XDG_DATA_HOME") or str(_home() / ".local" / "share")
    return Path(base) / "gpustack"


def config_home() -> Path:
    """Return the folder for one user's own client settings, such as saved logins."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", str(_home()))) / "gpustack"
    return Path(os.environ.get("XDG_CONFIG_HOME") or str(_home() / ".config")) / "gpustack"


def _home() -> Path:
    """Return the user's home; that of one whom nobody knows, as in some containers, is the root."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def make_dir(path: Path, *, what: str, mode: int = 0o755) -> Path:
    """Create ``path`` with its parents, and check that it can be written to.

    Raises GPUStackError with one line naming ``what`` (as in "data directory") and the path.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except NotADirectoryError as error:
        raise GPUStackError(f"{what} {path}: {error.filename} is not a directory") from error
    except FileExistsError as error:
        raise GPUStackError(f"{what} {path} is a file, not a directory; name another place") from error
    except OSError as error:
        raise GPUStackError(
            f"{what} {path} cannot be created: {error.strerror}; name another place"
        ) from error
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=_WRITE_TEST):
            pass
    except OSError as error:
        raise GPUStackError(
            f"{what} {path} is not writable: {error.strerror}; change its owner or name another place"
        ) from error
    return path


def place(folder: Path) -> str:
    """Return what tells this folder from a copy of it, also from one that has its path meanwhile; "" without it.

    What was moved on the same disk is the same place still.
    """
    try:
        status = folder.stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def stays_below(name: str) -> bool:
    """Tell whether ``name``, which comes from outside, means a place below the folder that it is put in."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts)


def write_atomic(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by a file with ``content``: readers see the old file or the new one, never a part.

    The file has ``mode`` from its first moment, is on disk before it gets its name, and has its name on disk
    afterwards. Who is killed meanwhile leaves ``.NAME.….tmp`` behind, for :func:`sweep`.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _write_whole(path, data, mode)
    except OSError as error:
        # Not the temporary one: nobody knows that.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(fd, "wb") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def sync_file(path: Path) -> None:
    """Bring the content of ``path``, and its name, to disk, where the system lets a reader do that."""
    if sys.platform == "win32":
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_dir(path.parent)


def sync_dir(folder: Path) -> None:
    """Bring the names in ``folder`` to disk, where the system lets a folder be opened for that."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep(folder: Path) -> None:
    """Remove what a killed :func:`write_atomic` or :func:`make_dir` left in ``folder``, which nobody else writes to."""
    for left in (*folder.glob(f".*{_UNFINISHED}"), *folder.glob(f"{_WRITE_TEST}*")):
        if left.is_file():
            with contextlib.suppress(OSError):
                left.unlink()
