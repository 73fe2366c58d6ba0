"""The shell around :func:`decide`: keeps the state by the feed, sleeps until something can matter, and acts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import NoReturn, Self

from gpustack.db import Feed, Store
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.kit.tasks import Tasks
from gpustack.lifecycle.instance import Deadlines
from gpustack.scheduling import propose
from gpustack.schemas import Defragmentation, Heartbeat, WorkerState
from gpustack.server.reconcile import clock, tidying
from gpustack.server.reconcile.actions import Ask
from gpustack.server.reconcile.decide import decide
from gpustack.server.reconcile.execute import Execute
from gpustack.server.reconcile.notes import Limits
from gpustack.server.reconcile.questions import Backends, Question, ask, spanning
from gpustack.server.reconcile.reading import read_rows
from gpustack.server.reconcile.scaling import FleetLoad
from gpustack.server.reconcile.state import TOPICS, State

log = logging.getLogger(__name__)

#: Decisions in a row without a pause; more means that they undo each other.
_MOST_ROUNDS = 100
#: Answers of backends that are kept.
_MOST_ANSWERS = 10_000
#: Seconds between two looks into the database for signs of life of the same silent workers.
_LOOK_FOR_LIFE = 5.0
#: Seconds until something whose time has come, but that nothing was done about, is looked at again.
_AGAIN = 5.0

#: Being this many seconds late means that this process, not the workers, stood still.
_FROZEN = 1.0


class Reconciler:
    """Reconciles while the context is open. Only one may run on a database.

    It survives trouble with the database or the feed: it reads everything again and goes on.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        backends: Backends,
        *,
        deadlines: Deadlines | None = None,
        limits: Limits | None = None,
        backoff: Backoff | None = None,
        on_silence: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._store = store
        self._feed = feed
        self._backends = backends
        self._loop = asyncio.get_running_loop()
        limits = limits or Limits(deadlines=deadlines or Deadlines())
        versions = {name: backend.default_version for name, (backend, _) in backends.items()}
        self.state = State(limits, versions, now=self._now())
        self.state.spanning = spanning(backends)
        self._execute = Execute(store, self.state, self._now)
        self._backoff = backoff or Backoff(first=0.5, limit=10.0)
        #: Told of most of a fleet that is silent, in a line; empty: it is not.
        self._on_silence = on_silence
        self._wake = asyncio.Event()
        self._trouble: BaseException | None = None
        self._looked_for_life = float("-inf")
        self._suspects: frozenset[int] = frozenset()
        self._stack = AsyncExitStack()
        self._tasks = Tasks("reconcile")

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._tasks)
        self._tasks.start("decide", self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def heard(self, beats: Mapping[int, Heartbeat]) -> None:
        """Take in heartbeats by worker id as they arrive; they make no events, so the feed does not carry them."""
        now = self._now()
        for worker_id, beat in beats.items():
            if self.state.heard(worker_id, beat, now):
                self._wake.set()
        if self.state.scaling.look_at_caches(self.state, now):
            self._wake.set()

    def loaded(self, load: FleetLoad) -> None:
        """Take in what there is to do, whenever it changes."""
        if self.state.scaling.take(self.state, load, self._now()):
            self._wake.set()

    def wake(self, models: Collection[int]) -> None:
        """Start those of these models that are asleep, as somebody waits for them; while the database is away, later."""
        self.state.scaling.wake(models)
        self._wake.set()

    async def propose(self) -> Defragmentation:
        """Return moves of instances that would make room; nothing is moved. Asks backends what they have not said yet."""
        wanted = tidying.wishes(self.state, self._now())
        if wanted.open:
            self.state.asking.update(wanted.open)
            await asyncio.gather(*map(self._answer, wanted.open))
            wanted = tidying.wishes(self.state, self._now())
        # Pure, and of a large fleet long: not on the event loop.
        proposal = await asyncio.to_thread(propose, self.state.snapshot(), wanted.movable, wanted.waiting)
        return tidying.described(self.state, proposal)

    def _now(self) -> float:
        return self._loop.time()

    async def _run(self) -> NoReturn:
        while True:
            try:
                await self._follow()
            except GPUStackError as error:
                wait = self._backoff.next()
                log.warning("interrupted, reading everything again in %.1f s: %s", wait, error)
                await self._outlast()
            except Exception:
                wait = self._backoff.next()
                log.exception("failed, reading everything again in %.1f s", wait)
            await asyncio.sleep(wait)

    async def _outlast(self) -> None:
        """Wait while the database is away. What workers could not report meanwhile is not held against them."""
        since = self._now()
        await self._store.returned()
        now = self._now()
        self.state.forgive(now - since)
        self.state.loaded_at = now

    async def _follow(self) -> NoReturn:
        """Read everything, then follow the feed until it fails."""
        self._trouble = None
        since = await self._store.events.last_number()
        await self._load()
        async with Tasks("reconcile") as tasks:
            tasks.start("feed", self._read(since))
            while True:
                self._wake.clear()
                if self._trouble is not None:
                    raise self._trouble
                popped = self.state.timers.pop(self._now())
                await self._settle()
                for key in popped:
                    self._rearm(key)
                await self._sleep()

    async def _load(self) -> None:
        rows = await read_rows(self._store)
        self.state.replace_rows(rows, now=self._now(), wall=datetime.now(UTC))

    async def _read(self, since: int) -> None:
        """Take in events; the end of the feed, whatever the reason, is trouble for the main task."""
        try:
            async with self._feed.subscribe(set(TOPICS), since=since) as events:
                async for event in events:
                    self.state.apply(event.topic, event.type, event.id, event.data, self._now())
                    self._wake.set()
            self._trouble = GPUStackError("the feed of events ended")
        except Exception as error:  # noqa: BLE001  # raised again by the main task
            self._trouble = error
        self._wake.set()

    async def _settle(self) -> None:
        """Decide and act until nothing is left to do."""
        for _ in range(_MOST_ROUNDS):
            await self._look_for_life()
            actions = decide(self.state, self._now())
            if not actions:
                self._backoff.reset()
                self._on_silence(clock.silence_of_most(self.state, self._now()))
                for model_id, due in self.state.scaling.again.items():
                    self.state.timers.put(("scaling", model_id), due)
                return
            for action in actions:
                if isinstance(action, Ask):
                    self._ask(action.questions)
            await self._execute.run([each for each in actions if not isinstance(each, Ask)])
        log.error("decisions do not settle: %s", decide(self.state, self._now()))

    async def _look_for_life(self) -> None:
        """Look for heartbeats that another process received before a worker is called lost."""
        now = self._now()
        suspects = clock.suspects(self.state, now)
        known = suspects <= self._suspects and now - self._looked_for_life < _LOOK_FOR_LIFE
        if known or not suspects:
            return
        self._looked_for_life = now
        wall = datetime.now(UTC)
        for worker in (await self._store.workers.list(page=-1)).items:
            if worker.heartbeat_time is not None and worker.id in self.state.workers:
                age = max(0.0, (wall - worker.heartbeat_time).total_seconds())
                self.state.alive(worker.id, now - age)
                self.state.take_status(worker.id, worker.status)
        self._suspects = clock.suspects(self.state, self._now())

    def _ask(self, questions: tuple[Question, ...]) -> None:
        self.state.asking.update(questions)
        for question in questions:
            self._tasks.start(f"ask {question.backend}", self._answer(question))

    async def _answer(self, question: Question) -> None:
        try:
            answer = await ask(question, self._backends, self._now())
            answers = self.state.answers
            while len(answers) >= _MOST_ANSWERS:
                del answers[next(iter(answers))]
            answers[question] = answer
        finally:
            self.state.asking.discard(question)
            self._wake.set()

    def _rearm(self, key: object) -> None:
        """Look again later at what is overdue still, such as instances of workers that are spared."""
        match key:
            case ("instance", int(instance_id)) if instance_id in self.state.instances:
                due = self.state.due(self.state.instances[instance_id])
            case ("worker", int(worker_id)) if worker_id in self.state.workers:
                if self.state.workers[worker_id].state is WorkerState.UNREACHABLE:
                    return
                due = self.state.silent_at(worker_id)
            case _:
                return
        if due is not None:
            self.state.timers.put(key, due if due > self._now() else self._now() + _AGAIN)

    async def _sleep(self) -> None:
        due = self.state.timers.next()
        if due is None:
            await self._wake.wait()
            return
        due = max(due, self._now())
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            late = self._now() - due
            if late > _FROZEN:
                log.warning("this process stood still for %.1f s; workers get that time back", late)
                self.state.forgive(late)
