"""Which questions about a hub's models are still asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gpustack.kit.errors import NotFound, Unavailable
from gpustack.schemas import Event, EventType, ModelFilePublic, ModelFileReport, ModelFileState, Source
from gpustack.worker.artifacts.hub.cache import HubSource
from gpustack.worker.model_files import ModelFiles
from gpustack.worker.outbox import Outbox


class Away:
    """A hub that answers nobody: at once with trouble, or never."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.asking: list[str] = []

    async def facts(self, source: HubSource, _commit: str) -> Any:
        self.asking.append(source.repo)
        try:
            if self.silent:
                await asyncio.Event().wait()
            raise Unavailable("the hub cannot be reached", retry_after=1.0)
        finally:
            if self.silent:
                self.asking.remove(source.repo)


def asked(number: int, *, request: int = 1, kind: EventType = EventType.CREATED) -> Event:
    now = datetime.now(UTC)
    file = ModelFilePublic(
        id=number,
        created_at=now,
        updated_at=now,
        worker_id=1,
        source=Source.HUGGINGFACE,
        huggingface_repo_id=f"org/m{number}",
        source_key=f"{number}",
        state=ModelFileState.ANALYZING,
        request=request,
    )
    return Event(type=kind, id=number, data=file.model_dump(mode="json"))


async def tell(files: ModelFiles, *events: Event) -> None:
    async def stream() -> AsyncIterator[Event]:
        for event in events:
            yield event

    await files.follow(stream(), lambda: None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def waiting(files: ModelFiles) -> list[str]:
    return [each.get_name() for each in files._tasks._tasks if not each.done()]


@pytest.mark.parametrize("silent", [True, False])
async def test_deleted_and_newer_requests_end_the_asking(silent: bool) -> None:
    reports: list[tuple[int, ModelFileReport]] = []

    async def send(number: int, report: ModelFileReport) -> None:
        reports.append((number, report))

    outbox: Outbox[ModelFileReport] = Outbox("model file", send)
    hub: Any = Away(silent=silent)
    files = ModelFiles(outbox, hub)
    many = range(1, 9)
    await tell(files, *(asked(number) for number in many))
    await until(lambda: len(hub.asking) >= 4)
    await tell(files, *(asked(number, kind=EventType.DELETED) for number in many))
    await until(lambda: not waiting(files))

    await tell(files, asked(9))
    await until(lambda: "org/m9" in hub.asking)
    await tell(files, asked(9, request=2, kind=EventType.UPDATED))
    await until(lambda: len(waiting(files)) == 2)
    assert files._asked == {9: 2}
    await files.stop()
    await outbox.stop()


async def test_a_file_that_the_server_has_forgotten_is_asked_for_no_more() -> None:
    async def send(_number: int, _report: ModelFileReport) -> None:
        raise NotFound("there is no such model file")

    outbox: Outbox[ModelFileReport] = Outbox("model file", send)
    hub: Any = Away(silent=False)
    files = ModelFiles(outbox, hub)
    await tell(files, asked(1))
    await until(lambda: "org/m1" in hub.asking and not waiting(files))
    assert not files._asked
    await files.stop()
    await outbox.stop()
