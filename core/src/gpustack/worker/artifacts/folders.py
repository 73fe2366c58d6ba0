"""Folders of environments: how much they take, taking them away at once, and what an install that was killed left."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from packaging.utils import canonicalize_name

from gpustack.kit.errors import Conflict, GPUStackError
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import write_atomic
from gpustack.kit.process import end_tree
from gpustack.worker.artifacts.recipe import Recipe

log = logging.getLogger(__name__)

#: In the environment of everything that installs: the path of the note that it is at work.
MARKER = "GPUSTACK_INSTALLS"
_TRASH = ".trash-"
#: Begins the folders in which an archive is made or taken over; the name of the environment follows, and chance.
EXPORT, IMPORT = ".export-", ".import-"


def disk_use(folder: Path) -> int:
    """Return the bytes that ``folder`` takes on its disk, each file once, however many names it has there."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for root, _, names in os.walk(folder, onerror=None):
        for name in (*names, "."):
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(root, name))  # noqa: PTH118  # many thousands of files
                if (key := (status.st_dev, status.st_ino)) not in seen:
                    seen.add(key)
                    # Windows does not tell blocks.
                    total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total


def venvs(home: Path) -> Path:
    """Return the folder of pipx's environments below its ``home``."""
    return home / "venvs"


def folders_of(home: Path, folder: str) -> list[Path]:
    """Return what pipx has made, or begun, as the environment that it calls ``folder``."""
    place = venvs(home)
    if not place.is_dir():
        return []
    return [each for each in place.iterdir() if canonicalize_name(each.name) == folder]


def hide(home: Path, bin_dir: Path, folder: Path) -> Path:
    """Take an environment, and the links into it, out of sight at once; return what is to be removed. Raises OSError.

    Running programs of it go on, but will not find what they have not loaded yet. ``home`` is on the same disk.
    """
    inside = folder.resolve()
    for link in _links(bin_dir):
        if link.resolve().is_relative_to(inside):
            link.unlink(missing_ok=True)
    trash = Path(tempfile.mkdtemp(dir=home, prefix=_TRASH))
    with contextlib.suppress(FileNotFoundError):
        folder.rename(trash / "it")
    return trash


def throw_away(trash: Iterable[Path]) -> None:
    """Remove what was hidden, which may take a while. What stays behind, :func:`empty_trash` removes."""
    for each in trash:
        shutil.rmtree(each, ignore_errors=True)


def discard(home: Path, bin_dir: Path, folder: Path) -> None:
    """Take an environment away for good. Raises OSError."""
    throw_away([hide(home, bin_dir, folder)])


def _links(bin_dir: Path) -> list[Path]:
    return [each for each in bin_dir.iterdir() if each.is_symlink()] if bin_dir.is_dir() else []


def empty_trash(home: Path) -> None:
    """Remove what a process that was killed while it took environments away has left."""
    for trash in home.glob(f"{_TRASH}*"):
        shutil.rmtree(trash, ignore_errors=True)


def unfinished(home: Path) -> Iterator[tuple[str, Path]]:
    """Yield the folders that installing, export and import have below ``home`` while they work, with the environment.

    Where the lock of that is free, whoever made the folder was killed.
    """
    for place, prefix in ((home, EXPORT), (home / "wheels", IMPORT)):
        for folder in place.glob(f"{prefix}*-*"):
            yield folder.name.removeprefix(prefix).rpartition("-")[0], folder
    for folder in (home / "pins").glob("*"):
        yield folder.name, folder


def users(folder: Path) -> list[psutil.Process]:
    """Return the processes of this machine that run from the environment in ``folder``, whoever started them."""
    inside = f"{folder.resolve()}{os.sep}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(word.startswith(inside) for word in process.cmdline()):
                found.append(process)
    return found


def refuse_used(link: Path, folder: Path) -> None:
    """Raise Conflict with one line while something runs from the environment of ``link``. Blocks."""
    if running := users(folder):
        names = ", ".join(f"process {process.pid}" for process in running[:3])
        raise Conflict(
            f"{link.name} is in use by {names}; remove the models that run from it, or change their version, first"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is written down while an environment is made, for whoever comes after a crash."""

    name: str
    folder: str
    #: There was no such environment before.
    fresh: bool


class Journal:
    """Notes on the environments that are being made below one ``home``; each is written under the lock of its name."""

    def __init__(self, home: Path, bin_dir: Path) -> None:
        self._home = home
        self._bin_dir = bin_dir

    def path(self, name: str) -> Path:
        """Return where the note about the environment ``name`` is while it is made."""
        return self._home / f".{name}.busy"

    def begin(self, recipe: Recipe) -> Work:
        """Note that the environment is made from now on."""
        fresh = not folders_of(self._home, recipe.folder)
        work = Work(name=recipe.name, folder=recipe.folder, fresh=fresh)
        write_atomic(self.path(recipe.name), json.dumps(asdict(work)))
        return work

    def end(self, work: Work) -> None:
        """Forget the note: the environment is made, or nothing of it is left."""
        self.path(work.name).unlink(missing_ok=True)

    def undo(self, work: Work) -> list[Path]:
        """Take out of sight what was made, unless it was there before; return what is to be thrown away. Quick."""
        trash = self.discard(work.folder) if work.fresh else []
        self.end(work)
        return trash

    def discard(self, folder: str) -> list[Path]:
        """Take out of sight what pipx calls ``folder``; a line in the log where that fails."""
        trash = []
        for each in folders_of(self._home, folder):
            try:
                trash.append(hide(self._home, self._bin_dir, each))
            except OSError as error:
                log.warning("%s cannot be removed: %s", each, error.strerror)
        return trash

    def unfinished(self) -> Iterator[str]:
        """Yield the names that are noted; those whose lock is held are just being made."""
        for path in self._home.glob(".*.busy"):
            yield path.name.removeprefix(".").removesuffix(".busy")

    def settle(self, name: str) -> bool:
        """End what a killed worker has left at work on ``name``, and undo it; False when there was nothing.

        The caller holds the lock of the name, so nobody else is at work on it.
        """
        path = self.path(name)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            work = Work(name=name, folder=str(values["folder"]), fresh=bool(values["fresh"]))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            return True
        end_at_work(path)
        throw_away(self.undo(work))
        return True


def end_abandoned(home: Path) -> int:
    """End what installs below ``home`` for somebody who is gone; return how many it was for. Blocks.

    The notes stay: what was begun is undone by whoever installs there next. An install whose lock is held goes on.
    """
    ended = 0
    for path in home.glob(".*.busy"):
        lock = FileLock(path.with_name(f"{path.name.removesuffix('.busy')}.lock"))
        try:
            if lock.acquire():
                ended += bool(end_at_work(path))
        except (OSError, GPUStackError) as error:
            log.warning("whether somebody still installs %s is not known: %s", path.name, error)
        finally:
            lock.release()
    return ended


def end_at_work(path: Path) -> int:
    """End the processes whose note is at ``path``, each with its tree; return how many there were. Blocks."""
    found = list(_at_work(path))
    for process in found:
        log.info("%s: ending process %d, which a worker that is gone has left", path.name, process.pid)
        end_tree(process.pid, grace=1.0)
    return len(found)


def _at_work(path: Path) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == str(path):
                yield process
