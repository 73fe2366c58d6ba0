"""The engines that this worker has: installs and removes them when the server asks, and says what is there.

What is not used for long, and wanted by no model, is taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from gpustack.client import Client
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import Conflict, GPUStackError, NotFound
from gpustack.kit.tasks import Tasks, to_the_end
from gpustack.schemas import (
    EngineHeld,
    EngineState,
    Event,
    EventType,
    WorkerEngineInventory,
    WorkerEnginePublic,
    WorkerEngineReport,
)
from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from gpustack.worker.artifacts.collect import Unused, collect, key_of, take_away
from gpustack.worker.artifacts.receipts import Held
from gpustack.worker.desk import Desk
from gpustack.worker.outbox import Outbox

log = logging.getLogger(__name__)

_MESSAGE = 4000
#: Seconds between two attempts to install what may work later, at first and at most.
_RETRY = (5.0, 300.0)
#: Seconds until a server that knows nothing of engines on workers is told again.
_UNKNOWN = 600.0
#: Seconds between two looks for what is unused, at most, and from the start of the worker to the first.
_DAY, _FIRST = 86_400.0, 300.0


@dataclass(slots=True, kw_only=True)
class _Doing:
    """What is done for one row: ``request`` is the newest that it answers."""

    request: int
    removes: bool
    #: Set to try again now what waits for a better time.
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    #: What does it, last, and all that has to have ended before.
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Engines:
    """Does what the rows of this worker in ``/v2/worker-engines`` ask for.

    Requests for different environments are done side by side, those for one after the other.
    """

    def __init__(
        self, client: Client, desk: Desk, installer: ArtifactInstaller, *, unused_seconds: float
    ) -> None:
        self._client = client
        self._desk = desk
        self._installer = installer
        self._unused = unused_seconds
        self._outbox: Outbox[WorkerEngineReport] = Outbox("engine", self._report)
        #: What is here is looked up and told with no report in between: one of an engine that came meanwhile would be
        #: followed by a list without it.
        self._telling = asyncio.Lock()
        self._outbox.on_gone = self._withdraw
        #: By row.
        self._doing: dict[int, _Doing] = {}
        self._changed = asyncio.Event()
        self._changed.set()
        self._tasks = Tasks("engines")

    def changed(self) -> None:
        """Tell the server anew what is here, soon."""
        self._changed.set()

    async def stop(self) -> None:
        """End what is being installed; the next worker takes it up again."""
        await self._tasks.stop()
        await self._outbox.stop()

    async def follow(self, events: AsyncIterator[Event], on_open: Callable[[], None]) -> None:
        """Do what the watch of this worker's engines says, for as long as it goes."""
        async for event in events:
            if event.type is EventType.HEARTBEAT:
                on_open()
            elif event.type is EventType.DELETED:
                self._withdraw(event.id)
                self._outbox.forget(event.id)
            else:
                self._look(event)

    async def tell(self) -> None:
        """Tell the server what is here: now, and whenever that changes."""
        wait = Backoff(first=1.0, limit=60.0)
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._telling:
                    held = await asyncio.to_thread(self._inventory)
                    await self._client.worker_engines.inventory(held)
            except NotFound:  # a server of before, which may be upgraded
                await asyncio.sleep(_UNKNOWN)
                self._changed.set()
            except GPUStackError as error:
                log.info("the engines of this worker are not told yet: %s", error)
                self._changed.set()
                await asyncio.sleep(wait.next())
            else:
                wait.reset()

    async def _report(self, engine_id: int, report: WorkerEngineReport) -> None:
        async with self._telling:
            await self._client.worker_engines.report(engine_id, report)

    async def tidy(self) -> None:
        """Undo what was interrupted, and take away what was not used for long; again and again."""
        pause = min(_FIRST, self._unused / 4) if self._unused else _FIRST
        await self._settle()
        while True:
            await asyncio.sleep(pause)
            pause = min(_DAY, self._unused / 4) if self._unused else _DAY
            await self._settle()
            try:
                if self._unused:
                    await self._collect()
            except (GPUStackError, OSError) as error:
                log.warning("unused engines are not looked for now: %s", error)
            # When each was used is told at least as often.
            self._changed.set()

    async def _settle(self) -> None:
        try:
            for name in await self._installer.settle():
                log.info("%s: its installation had been interrupted; nothing of it is left", name)
        except OSError as error:
            log.warning("what interrupted installations have left stays for now: %s", error)

    async def _collect(self) -> None:
        wanted = {
            (each.backend, each.version, tuple(each.packages))
            for each in await self._client.worker_engines.wanted()
        }
        for held in await collect(self._installer, Unused(seconds=self._unused, wanted=wanted)):
            log.info(
                "%s was not used since %s, and is removed", held.link.name, f"{held.last_used:%Y-%m-%d %H:%M}"
            )

    def _inventory(self) -> WorkerEngineInventory:
        now = datetime.now(UTC)
        engines = []
        for each in self._installer.environments():
            try:
                engines.append(
                    EngineHeld(
                        backend=each.receipt.backend,
                        version=each.receipt.version,
                        packages=each.receipt.extras,
                        disk=each.receipt.disk,
                        unused_seconds=max(0.0, (now - each.last_used).total_seconds()),
                    )
                )
            except ValidationError as error:
                why = error.errors()[0]
                log.warning("%s.json is not told: %s: %s", each.link, why["loc"], why["msg"])
        return WorkerEngineInventory(engines=engines)

    def _look(self, event: Event) -> None:
        try:
            engine = WorkerEnginePublic.model_validate(event.data)
        except ValidationError as error:
            log.warning(
                "engine %d: the server describes it in a way that is not understood: %s", event.id, error
            )
            return
        doing = self._doing.get(engine.id)
        removes = engine.state is EngineState.REMOVING
        if engine.state in (EngineState.INSTALLED, EngineState.ERROR):
            return
        if doing is not None and doing.request == engine.request:
            return
        if doing is not None and not (doing.removes or removes):
            # Asked again: what has come so far is not thrown away, and answers the newer request.
            doing.request = engine.request
            doing.hurry.set()
            self._say(engine, doing, EngineState.INSTALLING, "goes on")
            return
        before = [] if doing is None else [task for task in doing.tasks if not task.done()]
        for task in before:
            task.cancel()
        doing = self._doing[engine.id] = _Doing(request=engine.request, removes=removes)
        doing.tasks = [*before, self._tasks.start(engine.name.title, self._do(engine, doing, before))]

    def _withdraw(self, engine_id: int) -> None:
        """End what is done for a row that is gone."""
        if (doing := self._doing.pop(engine_id, None)) is not None:
            for task in doing.tasks:
                task.cancel()

    async def _do(
        self, engine: WorkerEnginePublic, doing: _Doing, before: Sequence[asyncio.Task[None]]
    ) -> None:
        if before:
            await asyncio.wait(before)
        try:
            if doing.removes:
                await to_the_end(self._remove(engine, doing))
            else:
                await self._install(engine, doing)
        except Exception as error:  # a defect here must not leave the row waiting
            log.exception("engine %s failed", engine.name.title)
            self._say(engine, doing, EngineState.ERROR, f"the worker failed: {error}; see its log")
        if self._doing.get(engine.id) is doing:
            del self._doing[engine.id]

    async def _install(self, engine: WorkerEnginePublic, doing: _Doing) -> None:
        """Install it, however often that fails for a reason that may pass."""
        title, wait = engine.name.title, Backoff(first=_RETRY[0], limit=_RETRY[1])
        self._say(engine, doing, EngineState.INSTALLING, "begins")

        def say(line: str) -> None:
            log.info("engine %s: %s", title, line)
            self._say(engine, doing, EngineState.INSTALLING, line)

        while True:
            try:
                await self._desk.install_engine(engine.backend, engine.version, tuple(engine.packages), say)
            except InstallError as error:
                if not error.again:
                    self._say(engine, doing, EngineState.ERROR, error.message)
                    return
                seconds = wait.next()
                say(f"{error}; trying again in {seconds:.0f} s (attempt {wait.failures + 1})")
                doing.hurry.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(doing.hurry.wait(), seconds)
            except GPUStackError as error:
                self._say(engine, doing, EngineState.ERROR, error.message)
                return
            else:
                held = await asyncio.to_thread(self._held, engine)
                disk = held.receipt.disk if held is not None else 0
                self._say(engine, doing, EngineState.INSTALLED, "", disk=disk)
                return

    async def _remove(self, engine: WorkerEnginePublic, doing: _Doing) -> None:
        held = await asyncio.to_thread(self._held, engine)
        try:
            if held is None:
                await self._desk.remove_engine(engine.backend, engine.version, tuple(engine.packages))
            else:
                await take_away(self._installer, held)
        except Conflict as error:
            self._say(engine, doing, EngineState.INSTALLED, error.message)
        except (GPUStackError, OSError) as error:
            self._say(engine, doing, EngineState.ERROR, f"it cannot be removed: {error}")
        else:
            log.info("engine %s: removed", engine.name.title)
            self._outbox.put(
                engine.id, WorkerEngineReport(request=engine.request, state=EngineState.REMOVING, gone=True)
            )

    def _held(self, engine: WorkerEnginePublic) -> Held | None:
        wanted = (engine.backend, engine.version, tuple(engine.packages))
        return next((each for each in self._installer.environments() if key_of(each) == wanted), None)

    def _say(
        self,
        engine: WorkerEnginePublic,
        doing: _Doing,
        state: EngineState,
        message: str,
        *,
        disk: int = 0,
    ) -> None:
        report = WorkerEngineReport(
            request=doing.request, state=state, state_message=message[:_MESSAGE], disk=disk
        )
        self._outbox.put(engine.id, report)
