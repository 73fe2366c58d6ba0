"""Things that take long to make, kept below the repository's ignored ``.cache`` for the next run."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; other test processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``make`` when it is not there; nobody sees it half filled."""
    if folder.exists():
        return folder
    with locked(folder.parent / f".{folder.name}.lock"):
        if not folder.exists():
            half = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                make(half)
                half.chmod(0o755)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return folder
