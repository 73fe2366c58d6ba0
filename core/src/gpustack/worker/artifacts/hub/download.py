"""Fetches the files of one model: ``python -P -m gpustack.worker.artifacts.hub.download``.

The order comes as one line of JSON by standard input, which stays open: its end is the end of whoever wants the files,
and of this process. Standard output tells, a line of JSON each:

    {"total": BYTES, "done": BYTES, "rate": BYTES_PER_SECOND}      about once a second
    {"path": PATH}                                                 all is here
    {"failed": LINE, "again": BOOL, "passing": BOOL, …}            the end otherwise
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpustack.kit.errors import GPUStackError, Unavailable
from gpustack.kit.paths import sync_file
from gpustack.kit.process import end_with_parent
from gpustack.kit.text import human_bytes
from gpustack.worker.artifacts.hub.api import HubApi, Listing, RepoFile
from gpustack.worker.artifacts.hub.cache import HubCache, HubSource
from gpustack.worker.artifacts.hub.choice import Choice, choose
from gpustack.worker.artifacts.hub.config import HubConfig
from gpustack.worker.artifacts.hub.errors import PASSING, DownloadError
from gpustack.worker.artifacts.hub.library import Library
from gpustack.worker.artifacts.hub.transfer import Meter, fetch_blob, patiently

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Seconds that the shown rate is a mean of.
_SPAN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to fetch. ``commit`` is empty when nobody has settled on one yet."""

    source: HubSource
    commit: str
    config: HubConfig
    #: Seconds between two lines about progress.
    every: float = 1.0

    def line(self) -> str:
        """Return it as one line; the token is in it."""
        config, source = self.config, self.source
        return json.dumps(
            {
                "source": {"repo": source.repo, "pattern": source.pattern, "revision": source.revision},
                "commit": self.commit,
                "every": self.every,
                "config": {
                    "cache_dir": str(config.cache_dir),
                    "endpoint": config.endpoint,
                    "token": config.token,
                    "xet": config.xet,
                    "fast": config.fast,
                    "stall": config.stall,
                    "retry_first": config.retry_first,
                    "retry_limit": config.retry_limit,
                },
            }
        )

    @classmethod
    def of(cls, line: str) -> Order:
        """Return what :meth:`line` was made of."""
        value = json.loads(line)
        config = HubConfig(**{**value["config"], "cache_dir": Path(value["config"]["cache_dir"])})
        return cls(
            source=HubSource(**value["source"]), commit=value["commit"], config=config, every=value["every"]
        )


class Download:
    """The whole work, in the order in which it can fail: list, choose, look for room, fetch, lay out."""

    def __init__(self, order: Order, tell: Callable[[dict[str, Any]], None]) -> None:
        self._order = order
        self._tell = tell
        self._cache = HubCache(order.config.cache_dir)
        self._meter = Meter(0)

    def run(self) -> Path:
        """Return the path of what an engine loads."""
        order, cache = self._order, self._cache
        with HubApi(order.config) as api:
            if (whole := cache.whole(order.source, order.commit)) and order.commit:
                return whole.path
            listing, choice = self._plan(api)
            cache.root.mkdir(parents=True, exist_ok=True)
            cache.sweep()
            self._look_for_room(listing, choice)
            self._fetch(api, listing, choice)
        cache.remember(order.source, listing.commit, choice)
        cache.point(order.source, listing.commit)
        if missing := cache.missing(listing.repo, listing.commit, choice.files):
            raise DownloadError(f"{missing[0].path} of {listing.repo} is not as long as the hub says")
        return cache.snapshot(listing.repo, listing.commit) / choice.main

    def watch(self) -> NoReturn:
        """Tell how far it is, for ever; ends the process when the library stands still."""
        seen: deque[tuple[float, int]] = deque()
        while True:
            now, done = time.monotonic(), self._meter.done
            seen.append((now, done))
            while now - seen[0][0] > _SPAN:
                seen.popleft()
            past, before = seen[0]
            rate = max(0, done - before) / (now - past) if now > past else 0.0
            self._tell({"total": self._meter.total, "done": done, "rate": rate})
            if self._order.config.xet and self._meter.still > self._order.config.stall:
                raise Unavailable("the Xet transfer has stopped", retry_after=1.0)
            time.sleep(self._order.every)

    def room(self) -> str:
        """Return why there is no room, with both numbers."""
        root = self._cache.root
        free = shutil.disk_usage(root).free
        needed = self._meter.total - self._meter.done
        return (
            f"no room for {self._order.source.repo} in {root}: {human_bytes(needed)} are needed and "
            f"{human_bytes(free)} free; make room, or name another place with --cache-dir"
        )

    def _plan(self, api: HubApi) -> tuple[Listing, Choice]:
        order = self._order
        if order.commit and (known := self._cache.chosen(order.source, order.commit)) is not None:
            return Listing(repo=order.source.repo, commit=order.commit, files=known.files), known
        listing = patiently(
            lambda: api.listing(order.source.repo, order.commit or order.source.revision),
            lambda: 0,
            first=order.config.retry_first,
        )
        return listing, choose(listing, order.source.pattern)

    def _look_for_room(self, listing: Listing, choice: Choice) -> None:
        self._meter.total = choice.size
        missing = {each.path for each in self._cache.missing(listing.repo, listing.commit, choice.files)}
        for file in choice.files:
            here = self._cache.present(listing.repo, file) if file.path in missing else file.size
            self._meter.put(file.path, here)
        if self._meter.total - self._meter.done > shutil.disk_usage(self._cache.root).free:
            raise DownloadError(self.room())

    def _fetch(self, api: HubApi, listing: Listing, choice: Choice) -> None:
        library = Library(self._order.config, listing, self._meter)
        missing = self._cache.missing(listing.repo, listing.commit, choice.files)
        with ThreadPoolExecutor(8 if self._order.config.fast else 4, thread_name_prefix="hub files") as pool:
            # Large ones first: the last of them decides when all is here.
            ordered = sorted(missing, key=lambda each: -each.size)
            for done in as_completed(
                [pool.submit(self._one, api, library, listing, each) for each in ordered]
            ):
                if (error := done.exception()) is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise error

    def _one(self, api: HubApi, library: Library, listing: Listing, file: RepoFile) -> None:
        place, first = (listing.repo, listing.commit), self._order.config.retry_first

        def done() -> int:
            return self._meter.of(file.path)

        if file.sha256 and not library.has_xet(file):
            patiently(lambda: fetch_blob(api, self._cache, place, file, self._meter), done, first=first)
        patiently(lambda: library.lay_out(file), done, first=first)
        sync_file(self._cache.snapshot(listing.repo, listing.commit) / file.path)
        self._meter.put(file.path, file.size)


def _failure(error: BaseException, room: Callable[[], str]) -> dict[str, Any]:
    """Return the last line for ``error``."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return {"failed": room(), "again": True, "passing": False}
    if isinstance(error, PASSING):
        return {"failed": error.message, "again": True, "passing": True, "after": error.retry_after}
    if isinstance(error, DownloadError):
        return {"failed": error.message, "again": error.again, "passing": False}
    if isinstance(error, GPUStackError):
        return {"failed": error.message, "again": False, "passing": False}
    if isinstance(error, OSError):
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return {"failed": f"{where}{error.strerror or error}", "again": True, "passing": False}
    return {
        "failed": f"fetching failed: {type(error).__name__}: {error}"[:500],
        "again": True,
        "passing": False,
    }


def main() -> int:
    """Do as ordered; the process ends here, whatever its threads are at."""
    end_with_parent()
    order = Order.of(sys.stdin.readline())
    lock = threading.Lock()

    def tell(value: dict[str, Any]) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()

    work = Download(order, tell)

    def last(value: dict[str, Any]) -> None:
        tell(value)
        os._exit(1 if "failed" in value else 0)

    def watch() -> None:
        try:
            work.watch()
        except Unavailable as error:
            last({**_failure(error, work.room), "xet": False})

    def leave_when_unwanted() -> None:
        sys.stdin.read()
        os._exit(1)

    for target in (watch, leave_when_unwanted):
        threading.Thread(target=target, daemon=True).start()
    try:
        path = work.run()
    except BaseException as error:  # noqa: BLE001  # told to whoever ordered; other threads may not be waited for
        last(_failure(error, work.room))
    else:
        last({"path": str(path)})
    return 1


if __name__ == "__main__":
    sys.exit(main())
