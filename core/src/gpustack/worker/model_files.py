"""Reads the headers of models when the server asks, here or on a hub, and reports what they say."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict

from pydantic import ValidationError

from gpustack.extensions import BundledModels
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.kit.tasks import Tasks
from gpustack.plugin import ModelFacts
from gpustack.schemas import (
    Event,
    EventType,
    FactsDocument,
    ModelFileDownload,
    ModelFilePublic,
    ModelFileReport,
    ModelFileState,
    Source,
    source_key,
    source_name,
)
from gpustack.worker.artifacts.hub import HubFacts, HubFiles
from gpustack.worker.artifacts.hub.cache import HubSource
from gpustack.worker.artifacts.hub.errors import PASSING
from gpustack.worker.facts import read_facts_within, read_sizes_within
from gpustack.worker.outbox import Outbox

log = logging.getLogger(__name__)

_AT_ONCE = 4
_MESSAGE = 4000
#: Seconds between two words about a long reading, and the longest wait for a hub: both are less than the server's
#: patience with a silent worker.
_TICK = 20.0
_RETRY = 30.0


class ModelFiles:
    """Answers each request of the server to read a model's files, a few at a time."""

    def __init__(
        self,
        outbox: Outbox[ModelFileReport],
        hub: HubFiles,
        bundled: BundledModels,
        read: Callable[[str], Awaitable[ModelFacts]] = read_facts_within,
    ) -> None:
        self._outbox = outbox
        self._hub = hub
        self._bundled = bundled
        self._read = read
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._hub_slots = asyncio.Semaphore(_AT_ONCE)
        self._asked: dict[int, int] = {}
        self._answers: dict[int, asyncio.Task[None]] = {}
        outbox.on_gone = self._withdraw
        #: Everything that existed when this worker started was told: what comes later is our own doing.
        self._told = False
        self._tasks = Tasks("model files")

    async def follow(self, events: AsyncIterator[Event], on_open: Callable[[], None]) -> None:
        """Do what the watch of this worker's model files says, for as long as it goes."""
        async for event in events:
            if event.type is EventType.HEARTBEAT:
                self._told = True
                on_open()
            elif event.type is EventType.DELETED:
                self._withdraw(event.id)
                self._outbox.forget(event.id)
            else:
                self._look(event)

    async def stop(self) -> None:
        """End what is being read."""
        await self._tasks.stop()

    def _look(self, event: Event) -> None:
        try:
            file = ModelFilePublic.model_validate(event.data)
        except ValidationError as error:
            log.warning(
                "model file %d: the server describes it in a way that is not understood: %s", event.id, error
            )
            return
        if file.state is not ModelFileState.ANALYZING or self._asked.get(file.id) == file.request:
            self._correct(file)
            return
        self._withdraw(file.id)
        self._asked[file.id] = file.request
        self._answers[file.id] = self._tasks.start(f"{file.id}", self._answer(file))

    def _withdraw(self, file_id: int) -> None:
        """Ask nobody any more for what is not wanted, or wanted anew."""
        self._asked.pop(file_id, None)
        if (answer := self._answers.pop(file_id, None)) is not None:
            answer.cancel()

    def _correct(self, file: ModelFilePublic) -> None:
        """Take back what a worker before this one said of a download that ended with it."""
        before = not self._told and file.source is Source.HUGGINGFACE
        if before and file.state is ModelFileState.DOWNLOADING and not self._hub.busy(HubSource.of(file)):
            self._hub.not_wanted(HubSource.of(file), file.resolved_revision)

    async def _answer(self, file: ModelFilePublic) -> None:
        if file.source is Source.HUGGINGFACE:
            ticking = self._tasks.start(f"{file.id} is slow", self._tick(file))
            try:
                report = await self._from_hub(file)
            finally:
                ticking.cancel()
        else:
            report = await self._reading(file)
        if self._asked.get(file.id) == file.request:
            self._asked.pop(file.id)
            self._answers.pop(file.id)
            self._outbox.put(file.id, report)

    async def _reading(self, file: ModelFilePublic) -> ModelFileReport:
        try:
            async with self._slots:
                path = await self._path(file)
                try:
                    facts = await self._read(path)
                except InvalidInput as error:
                    return await self._unreadable(file, path, error)
        except GPUStackError as error:
            return _error(file, error.message)
        except Exception as error:  # a defect here must not leave the server waiting
            log.exception("model file %s: reading failed", source_name(file))
            return _error(file, f"{source_name(file)} could not be read: {error}; see the log of the worker")
        return ModelFileReport(
            request=file.request,
            state=ModelFileState.READY,
            size=facts.weight_bytes,
            resolved_paths=[facts.path],
            facts=FactsDocument.model_validate(asdict(facts)),
        )

    async def _unreadable(self, file: ModelFilePublic, path: str, error: InvalidInput) -> ModelFileReport:
        """Return that these are no files of a model to us, and how large they are: engines of users may read them."""
        report = _error(file, error.message)
        try:
            facts = await read_sizes_within(path)
        except GPUStackError:
            return report  # there is nothing, which the error says
        return report.model_copy(update={"facts": FactsDocument.model_validate(asdict(facts))})

    async def _path(self, file: ModelFilePublic) -> str:
        if file.source is Source.BUNDLED:
            return str(await self._bundled.path(file.bundled_name))
        return file.local_path

    async def _from_hub(self, file: ModelFilePublic) -> ModelFileReport:
        """Ask the hub, for as long as it may answer yet, and say what is waited for."""
        source, wait = HubSource.of(file), Backoff(first=2.0, limit=_RETRY)
        while True:
            try:
                async with self._hub_slots:
                    return _found(file, await self._hub.facts(source, file.resolved_revision))
            except PASSING as error:
                seconds = max(wait.next(), min(_RETRY, error.retry_after))
                attempt = f"trying again in {seconds:.0f} s (attempt {wait.failures + 1})"
                self._interim(file, f"{error}; {attempt}")
            except GPUStackError as error:
                return _error(file, error.message)
            except Exception as error:  # a defect here must not leave the server waiting
                log.exception("model file %s: reading failed", source_name(file))
                return _error(
                    file, f"{source_name(file)} could not be read: {error}; see the log of the worker"
                )
            await asyncio.sleep(seconds)

    async def _tick(self, file: ModelFilePublic) -> None:
        """Say now and then that reading goes on: the server gives up on a silent worker."""
        for count in itertools.count(1):
            await asyncio.sleep(_TICK)
            self._interim(file, f"reading the headers of {source_name(file)} for {count * _TICK:.0f} s")

    def _interim(self, file: ModelFilePublic, message: str) -> None:
        if self._asked.get(file.id) == file.request:
            log.info("model file %s: %s", source_name(file), message)
            state = ModelFileState.ANALYZING
            self._outbox.put(
                file.id, ModelFileReport(request=file.request, state=state, state_message=message[:_MESSAGE])
            )


class Downloads:
    """Sends how far downloads are, of each source the newest only."""

    def __init__(self, send: Callable[[ModelFileDownload], Awaitable[object]]) -> None:
        self._outbox: Outbox[ModelFileDownload] = Outbox("download", lambda _key, report: send(report))
        self._keys: dict[str, int] = {}

    def put(self, report: ModelFileDownload) -> None:
        """Send a report as soon as possible."""
        key = self._keys.setdefault(source_key(report), len(self._keys))
        self._outbox.put(key, report)

    async def stop(self) -> None:
        """End without sending the rest."""
        await self._outbox.stop()


def _found(file: ModelFilePublic, found: HubFacts) -> ModelFileReport:
    return ModelFileReport(
        request=file.request,
        state=ModelFileState.ANALYZED if found.path is None else ModelFileState.READY,
        state_message=found.note,
        size=found.size,
        resolved_paths=[] if found.path is None else [str(found.path)],
        resolved_revision=found.commit,
        facts=FactsDocument.model_validate(asdict(found.facts)),
    )


def _error(file: ModelFilePublic, message: str) -> ModelFileReport:
    return ModelFileReport(request=file.request, state=ModelFileState.ERROR, state_message=message[:_MESSAGE])
