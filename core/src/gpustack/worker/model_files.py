"""Reads the headers of models when the server asks, and reports what they say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict

from pydantic import ValidationError

from gpustack.kit.errors import GPUStackError
from gpustack.kit.tasks import Tasks
from gpustack.plugin import ModelFacts
from gpustack.schemas import (
    Event,
    EventType,
    FactsDocument,
    ModelFilePublic,
    ModelFileReport,
    ModelFileState,
)
from gpustack.worker.facts import read_facts_within
from gpustack.worker.outbox import Outbox

log = logging.getLogger(__name__)

_AT_ONCE = 4
_MESSAGE = 4000


class ModelFiles:
    """Answers each request of the server to read a model's files, a few at a time."""

    def __init__(
        self,
        outbox: Outbox[ModelFileReport],
        read: Callable[[str], Awaitable[ModelFacts]] = read_facts_within,
    ) -> None:
        self._outbox = outbox
        self._read = read
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._asked: dict[int, int] = {}
        self._tasks = Tasks("model files")

    async def follow(self, events: AsyncIterator[Event], on_open: Callable[[], None]) -> None:
        """Do what the watch of this worker's model files says, for as long as it goes."""
        async for event in events:
            if event.type is EventType.HEARTBEAT:
                on_open()
            elif event.type is EventType.DELETED:
                self._asked.pop(event.id, None)
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
            return
        self._asked[file.id] = file.request
        self._tasks.start(f"{file.id}", self._answer(file))

    async def _answer(self, file: ModelFilePublic) -> None:
        report = await self._reading(file)
        if self._asked.get(file.id) == file.request:
            self._asked.pop(file.id)
            self._outbox.put(file.id, report)

    async def _reading(self, file: ModelFilePublic) -> ModelFileReport:
        try:
            async with self._slots:
                facts = await self._read(file.local_path)
        except GPUStackError as error:
            return _error(file, error.message)
        except Exception as error:  # a defect here must not leave the server waiting
            log.exception("model file %s: reading failed", file.local_path)
            return _error(file, f"{file.local_path} could not be read: {error}; see the log of the worker")
        return ModelFileReport(
            request=file.request,
            state=ModelFileState.READY,
            size=facts.weight_bytes,
            resolved_paths=[facts.path],
            facts=FactsDocument.model_validate(asdict(facts)),
        )


def _error(file: ModelFilePublic, message: str) -> ModelFileReport:
    return ModelFileReport(request=file.request, state=ModelFileState.ERROR, state_message=message[:_MESSAGE])
