"""The hub for a worker: facts without a download, and files fetched once for all who need them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, Unavailable
from gpustack.kit.paths import make_dir
from gpustack.kit.process import OWN_SESSION, describe_exit, end_tree_async
from gpustack.kit.threads import StillHangingError, call_aside
from gpustack.plugin import ModelFacts
from gpustack.schemas import ModelFileDownload, ModelFileState, Source
from gpustack.worker.artifacts.hub.api import HubApi, is_commit
from gpustack.worker.artifacts.hub.cache import HubCache, HubSource, Whole
from gpustack.worker.artifacts.hub.choice import choose
from gpustack.worker.artifacts.hub.config import HubConfig
from gpustack.worker.artifacts.hub.download import Order
from gpustack.worker.artifacts.hub.errors import PASSING, DownloadError
from gpustack.worker.artifacts.hub.heads import read_remote
from gpustack.worker.artifacts.hub.library import library_environment
from gpustack.worker.artifacts.hub.progress import Progress
from gpustack.worker.facts import read_facts

log = logging.getLogger(__name__)

T = TypeVar("T")

Listener = Callable[[Progress], None]
#: Takes what there is to tell of a source; never waits.
Tell = Callable[[ModelFileDownload], None]

#: Seconds that reading the facts of a repository may take.
_FACTS_WITHIN = 180.0
#: Seconds without a word from the downloading process, beyond those it waits for the hub itself.
_SILENCE = 60.0
#: Seconds that the disk of the cache has for a small thing, and a killed process to be gone.
_DISK, _GONE = 60.0, 5.0
_NOT_WANTED = "nobody needs the files now; what was fetched stays in the cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFacts:
    """What a source is at one commit."""

    facts: ModelFacts
    commit: str
    #: Bytes of all files.
    size: int
    #: What was decided for the user, such as the quantisation.
    note: str = ""
    #: What an engine would load; None when the files are not here.
    path: Path | None = None


@dataclass(slots=True, eq=False)
class _Running:
    """One download, and who waits for it."""

    task: asyncio.Task[Path]
    listeners: list[Listener] = field(default_factory=list)
    latest: Progress = field(default_factory=Progress)


class HubFiles:
    """The hub and its cache on this worker. Downloads end with those who wait for them."""

    def __init__(self, config: HubConfig, tell: Tell = lambda _report: None, *, every: float = 1.0) -> None:
        self._config = config
        self._tell = tell
        self._every = every
        self._cache = HubCache(config.cache_dir)
        self._running: dict[tuple[HubSource, str], _Running] = {}

    def use_token(self, token: str) -> None:
        """Show another token from now on; what is being fetched goes on with the one it began with."""
        self._config = replace(self._config, token=token)

    # Facts ----------------------------------------------------------------------------------------------

    async def facts(self, source: HubSource, commit: str = "") -> HubFacts:
        """Return what the source is at ``commit``, or at what its revision stands for now.

        Files that are here are not asked for at the hub, which need not be reachable then. Raises the errors of
        :mod:`.errors`, and InvalidInput when it is no model.
        """
        try:
            return await call_aside(
                # By repository: what is not wanted any more ends in its own time, and takes no place of others.
                f"facts of {source.repo}",
                lambda: self._facts(source, commit),
                timeout=_FACTS_WITHIN,
            )
        except (TimeoutError, StillHangingError):
            raise Unavailable(
                f"the headers of {source.repo} could not be read within {_FACTS_WITHIN:.0f} s",
                retry_after=10.0,
            ) from None

    def _facts(self, source: HubSource, commit: str) -> HubFacts:
        pinned = commit or (source.revision if is_commit(source.revision) else "")
        if pinned and (whole := self._cache.whole(source, pinned)):
            return _local(whole)
        if self._config.offline:
            return _local(self._here(source, pinned))
        try:
            with HubApi(self._config) as api:
                listing = api.listing(source.repo, pinned or source.revision)
                if whole := self._cache.whole(source, listing.commit):
                    return _local(whole)
                choice = choose(listing, source.pattern)
                facts = read_remote(api, listing, choice)
        except PASSING as error:
            if (whole := self._cache.whole(source, pinned)) is None:
                raise
            log.warning("%s; taking %s as it is in the cache, at commit %s", error, source.repo, whole.commit)
            return _local(whole)
        return HubFacts(facts=facts, commit=listing.commit, size=choice.size, note=choice.note)

    def _here(self, source: HubSource, commit: str) -> Whole:
        """Return what is here, while nobody may be asked. Blocks."""
        if whole := self._cache.lying(source, commit):
            return whole
        revision = commit or source.revision
        raise DownloadError(
            f"{source.repo}{revision and '@' + revision} is not in {self._config.cache_dir}, and HF_HUB_OFFLINE is set "
            "for this worker: start it without, or put the files there",
            again=False,
        )

    # Files ----------------------------------------------------------------------------------------------

    def busy(self, source: HubSource) -> bool:
        """Tell whether files of the source are being fetched."""
        return any(key[0] == source for key in self._running)

    def not_wanted(self, source: HubSource, commit: str) -> None:
        """Say that the files are not being fetched."""
        self._report((source, commit), ModelFileState.ANALYZED, Progress(), _NOT_WANTED)

    async def fetch(self, source: HubSource, commit: str, listener: Listener) -> Path:
        """Return what an engine loads, once all files of the source at ``commit`` are here.

        ``listener`` hears of the progress. Passing trouble is waited for, however long it takes; raises
        DownloadError with one line for what people must mend. The download ends when all its callers are cancelled.
        """
        if self._config.offline:
            return (await self._on_disk(lambda: self._here(source, commit))).path
        if commit and (whole := await self._on_disk(lambda: self._cache.whole(source, commit))):
            return whole.path
        key = (source, commit)
        if (running := self._running.get(key)) is None:
            task = asyncio.create_task(self._run(key), name=f"hub: {source.repo}")
            running = self._running[key] = _Running(task)
            task.add_done_callback(lambda _task: self._forget(key, running))
        running.listeners.append(listener)
        listener(running.latest)
        try:
            return await asyncio.shield(running.task)
        finally:
            running.listeners.remove(listener)
            if not running.listeners and not running.task.done():
                self._forget(key, running)
                running.task.cancel()
                # The next one for these files must find no process at them.
                await asyncio.wait([running.task])

    def _forget(self, key: tuple[HubSource, str], running: _Running) -> None:
        if self._running.get(key) is running:
            del self._running[key]

    async def _run(self, key: tuple[HubSource, str]) -> Path:
        source, commit = key
        try:
            await self._on_disk(lambda: make_dir(self._config.cache_dir, what="--cache-dir"))
            path = await self._until_here(source, commit)
        except asyncio.CancelledError:
            self.not_wanted(source, commit)
            raise
        except GPUStackError as error:
            self._report(key, ModelFileState.ERROR, self._latest(key), error.message)
            raise
        self._report(key, ModelFileState.READY, self._latest(key), "", str(path))
        return path

    async def _on_disk(self, work: Callable[[], T]) -> T:
        """Return ``work()`` at the cache, which may lie on a file system that has stalled."""
        try:
            return await call_aside("hub cache", work, timeout=_DISK)
        except (TimeoutError, StillHangingError):
            raise DownloadError(
                f"{self._config.cache_dir} does not answer; is it on a file system that has stalled?"
            ) from None

    async def _until_here(self, source: HubSource, commit: str) -> Path:
        """Let processes try until one has succeeded; each goes on where the one before ended."""
        config, key = self._config, (source, commit)
        wait = Backoff(first=config.retry_first, limit=config.retry_limit)
        while True:
            before = self._latest(key).done
            end = await self._once(key, Order(source=source, commit=commit, config=config, every=self._every))
            if "path" in end:
                return Path(end["path"])
            if not end["passing"]:
                raise DownloadError(end["failed"], again=end["again"])
            if self._latest(key).done > before:
                wait.reset()
            if end.get("xet") is False:
                config = replace(config, xet=False)
            seconds = max(wait.next(), float(end.get("after", 0.0)))
            trouble = f"{end['failed']}; trying again in {seconds:.0f} s (attempt {wait.failures + 1})"
            log.warning("%s: %s", source.repo, trouble)
            self._progress(key, replace(self._latest(key), rate=0.0, trouble=trouble))
            await asyncio.sleep(seconds)

    async def _once(self, key: tuple[HubSource, str], order: Order) -> dict[str, Any]:
        """Run one process to its end; return its last line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "gpustack.worker.artifacts.hub.download",
            env=library_environment(order.config, os.environ), cwd=order.config.cache_dir,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, **OWN_SESSION,
        )  # fmt: skip
        try:
            return await self._follow(key, order, process)
        finally:
            await asyncio.shield(_end(process))

    async def _follow(
        self, key: tuple[HubSource, str], order: Order, process: asyncio.subprocess.Process
    ) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write((order.line() + "\n").encode())
        while True:
            try:
                async with asyncio.timeout(order.config.stall + _SILENCE):
                    line = await process.stdout.readline()
                    code = None if line else await process.wait()
            except TimeoutError:
                return _passing(
                    "the downloading process hangs; is the cache on a file system that has stalled?"
                )
            if code is not None:
                return _passing(f"the downloading process {describe_exit(code)}")
            try:
                said = json.loads(line)
            except ValueError:
                log.info("%s: %s", order.source.repo, line.decode(errors="replace").rstrip()[:500])
                continue
            if "total" not in said:
                return dict(said)
            self._progress(key, Progress(total=said["total"], done=said["done"], rate=said["rate"]))

    # Telling --------------------------------------------------------------------------------------------

    def _latest(self, key: tuple[HubSource, str]) -> Progress:
        running = self._running.get(key)
        return running.latest if running is not None else Progress()

    def _progress(self, key: tuple[HubSource, str], progress: Progress) -> None:
        if (running := self._running.get(key)) is None or running.latest == progress:
            return
        running.latest = progress
        for listener in running.listeners:
            listener(progress)
        self._report(key, ModelFileState.DOWNLOADING, progress, progress.trouble)

    def _report(
        self,
        key: tuple[HubSource, str],
        state: ModelFileState,
        progress: Progress,
        message: str,
        path: str = "",
    ) -> None:
        source, commit = key
        ready = state is ModelFileState.READY
        report = ModelFileDownload(
            source=Source.HUGGINGFACE,
            huggingface_repo_id=source.repo,
            huggingface_filename=source.pattern,
            huggingface_revision=source.revision,
            resolved_revision=commit,
            state=state,
            state_message=message[:4000],
            size=progress.total,
            downloaded_size=progress.total if ready else progress.done,
            download_rate=int(progress.rate),
            resolved_paths=[path] if path else [],
        )
        self._tell(report)


def _local(whole: Whole) -> HubFacts:
    facts = read_facts(whole.path)
    return HubFacts(facts=facts, commit=whole.commit, size=whole.size, path=whole.path)


def _passing(message: str) -> dict[str, Any]:
    return {"failed": message, "again": True, "passing": True}


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if process.returncode is None:
        await end_tree_async(process.pid, grace=1.0)
    try:
        async with asyncio.timeout(_GONE):
            await process.wait()
    except TimeoutError:
        # The system keeps it until its disk answers: nobody may have to wait for that.
        log.warning(
            "process %d fetched files and cannot be ended; has the cache's disk stalled?", process.pid
        )
