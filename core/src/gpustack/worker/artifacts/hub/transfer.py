"""One large file from the hub into its blob: goes on where an earlier attempt ended, and is checked at the end. Blocks.

The library's own downloads begin anew after an interruption; these bytes are too many for that.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, Unavailable
from gpustack.kit.locks import FileLock
from gpustack.kit.paths import sync_dir
from gpustack.worker.artifacts.hub.api import HubApi, RepoFile
from gpustack.worker.artifacts.hub.cache import HubCache
from gpustack.worker.artifacts.hub.errors import DownloadError

T = TypeVar("T")

_PIECE = 8 << 20
_BUFFER = 1 << 20
#: Failures in a row without a byte in between after which somebody else is to decide how to go on.
_MOST_FAILURES = 3
#: Whole files with the wrong content after which it is not the network.
_MOST_WRONG = 2
_LOOK = 0.2


class Meter:
    """Bytes of all files together, counted by several threads."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._moved = time.monotonic()

    def put(self, name: str, done: int) -> None:
        """Note that ``done`` bytes of a file are here."""
        with self._lock:
            if self._done.get(name) != done:
                self._done[name] = done
                self._moved = time.monotonic()

    def of(self, name: str) -> int:
        """Return the bytes of one file that are here."""
        return self._done.get(name, 0)

    @property
    def done(self) -> int:
        """Bytes that are here."""
        with self._lock:
            return sum(self._done.values())

    @property
    def still(self) -> float:
        """Seconds since anything moved."""
        return time.monotonic() - self._moved


def patiently(work: Callable[[], T], progress: Callable[[], int], *, first: float) -> T:
    """Return ``work()``, tried again while attempts bring bytes; what fails without any is raised after a few."""
    wait = Backoff(first=first, limit=10.0)
    failures = 0
    while True:
        before = progress()
        try:
            return work()
        except Unavailable:
            if progress() > before:
                failures = 0
                wait.reset()
            failures += 1
            if failures >= _MOST_FAILURES:
                raise
            time.sleep(wait.next())


def fetch_blob(api: HubApi, cache: HubCache, place: tuple[str, str], file: RepoFile, meter: Meter) -> None:
    """Make ``file`` of ``place`` (repository and commit) whole in the cache.

    Of several processes one fetches, the others wait and show how far it is. Raises the errors of :mod:`.errors`,
    and OSError when the disk does not take it.
    """
    repo = place[0]
    blob, partial = cache.blob(repo, file), cache.partial(repo, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(cache.lock(repo, file), lambda: meter.put(file.path, cache.present(repo, file))):
        for _ in range(_MOST_WRONG):
            if _is_whole(blob, file):
                meter.put(file.path, file.size)
                return
            digest = _append(api, place, file, partial, meter)
            if digest == file.sha256:
                partial.replace(blob)
                sync_dir(blob.parent)
                meter.put(file.path, file.size)
                return
            partial.unlink()
            meter.put(file.path, 0)
    raise DownloadError(
        f"{file.path} of {repo} has another content than the hub says each time it is fetched; a proxy may change it"
    )


def _is_whole(blob: Path, file: RepoFile) -> bool:
    try:
        return blob.stat().st_size == file.size
    except OSError:
        return False


def _append(api: HubApi, place: tuple[str, str], file: RepoFile, partial: Path, meter: Meter) -> str:
    """Fetch what ``partial`` lacks, and return the digest of all of it once it is on disk; "" when more than that comes."""
    digest = hashlib.sha256()
    with partial.open("a+b", buffering=_BUFFER) as target:
        have = target.seek(0, 2)
        if have > file.size:
            target.truncate(0)
            have = 0
        _digest(target, digest.update)
        meter.put(file.path, have)
        if have < file.size:
            with api.stream(*place, file.path, have, file.size - have) as pieces:
                for piece in pieces:
                    if have + len(piece) > file.size:
                        # Something else, which may have no end.
                        return ""
                    target.write(piece)
                    # What this process still held would be lost with it.
                    target.flush()
                    digest.update(piece)
                    have += len(piece)
                    meter.put(file.path, have)
        if have < file.size:
            raise Unavailable(f"the hub sent {file.path} incompletely", retry_after=1.0)
        # Later only the length is looked at, also after a power cut.
        os.fsync(target.fileno())
    return digest.hexdigest()


def _digest(file: IO[bytes], update: Callable[[bytes], None]) -> None:
    """Feed ``update`` with what the file holds by now."""
    file.seek(0)
    while piece := file.read(_PIECE):
        update(piece)


@contextmanager
def _alone(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock, which ends with its holder, however that ends; call ``waiting`` while another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while not _acquire(lock):
        waiting()
        time.sleep(_LOOK)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock) -> bool:
    try:
        return lock.acquire()
    except GPUStackError as error:
        raise DownloadError(f"{error.message}; name another place with --cache-dir", again=False) from error
