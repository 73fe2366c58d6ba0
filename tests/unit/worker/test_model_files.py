"""Which questions about a hub's models are still asked, and what is said of models that plugins carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import NotFound, Unavailable
from gpustack.schemas import Event, EventType, ModelFilePublic, ModelFileReport, ModelFileState, Source
from gpustack.worker.artifacts.hub.cache import HubSource
from gpustack.worker.model_files import ModelFiles
from gpustack.worker.outbox import Outbox
from support.bundled import a_bundled_model, bundled_models
from support.gguf_bytes import a_gguf

NOTHING: Any = None


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
    files = ModelFiles(outbox, hub, NOTHING)
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
    files = ModelFiles(outbox, hub, NOTHING)
    await tell(files, asked(1))
    await until(lambda: "org/m1" in hub.asking and not waiting(files))
    assert not files._asked
    await files.stop()
    await outbox.stop()


async def report_on(name: str, *models: Any) -> ModelFileReport:
    """Return what is said of the bundled model ``name`` on a worker that has ``models``."""
    reports: list[ModelFileReport] = []

    async def send(_number: int, report: ModelFileReport) -> None:
        reports.append(report)

    outbox: Outbox[ModelFileReport] = Outbox("model file", send)
    async with bundled_models(*models) as bundled:
        files = ModelFiles(outbox, NOTHING, bundled)
        event = asked(1)
        event.data.update(source="bundled", bundled_name=name, huggingface_repo_id="")
        await tell(files, event)
        await until(lambda: bool(reports))
        await files.stop()
    await outbox.stop()
    return reports[0]


async def test_the_files_of_a_bundled_model_are_read_where_the_plugin_has_them(tmp_path: Path) -> None:
    path = a_gguf(tmp_path / "m.gguf")
    report = await report_on("tiny", a_bundled_model(path))
    assert report.state is ModelFileState.READY, report.state_message
    assert report.resolved_paths == [str(path)]


async def test_a_worker_without_the_plugin_says_which_models_it_has(tmp_path: Path) -> None:
    report = await report_on("demo", a_bundled_model(tmp_path))
    assert report.state is ModelFileState.ERROR
    assert report.state_message == "no installed plugin brings a model 'demo'; there are: tiny"


async def test_a_bundled_file_that_is_gone_is_an_error_of_one_line(tmp_path: Path) -> None:
    report = await report_on("tiny", a_bundled_model(tmp_path / "gone.gguf"))
    assert report.state is ModelFileState.ERROR
    assert "gone.gguf" in report.state_message
    assert "\n" not in report.state_message
