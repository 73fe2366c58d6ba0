"""The hands of one instance: does what :mod:`gpustack.lifecycle.engine` says and tells it what happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpustack.kit.errors import GPUStackError, InvalidInput
from gpustack.kit.process import moment
from gpustack.kit.tasks import Tasks, persist
from gpustack.lifecycle import engine as life
from gpustack.plugin import Refused
from gpustack.schemas import (
    InstanceMember,
    InstanceReport,
    InstanceState,
    ModelForWorker,
    ModelInstancePublic,
    ModelPublic,
    Source,
)
from gpustack.worker.artifacts import InstallError
from gpustack.worker.artifacts.hub import DownloadError, Progress
from gpustack.worker.artifacts.hub.cache import HubSource
from gpustack.worker.desk import Installed
from gpustack.worker.draining import until_idle
from gpustack.worker.leftovers import clear, end_all, make_way
from gpustack.worker.measuring import Peak
from gpustack.worker.memory import Notebook, first_event
from gpustack.worker.ports import Lease
from gpustack.worker.probe import look
from gpustack.worker.runners import engine as engines
from gpustack.worker.runners.ending import own_record
from gpustack.worker.runners.engine import Engine, Launch
from gpustack.worker.runners.listening import intruder
from gpustack.worker.runners.logfile import log_path
from gpustack.worker.runners.records import EngineRecord
from gpustack.worker.workshop import Workshop

log = logging.getLogger(__name__)

_MESSAGE = 16_000
#: Of an engine's log, in which the reason of its end is looked for.
_MOST_LINES = 400


class InstanceDriver:
    """One instance on this worker, from its assignment until it is withdrawn.

    :meth:`run` is the whole life. Each event belongs to a generation, which ends with a kill: what an earlier
    process or timer still has to say is dropped.
    """

    def __init__(self, shop: Workshop, instance: ModelInstancePublic) -> None:
        self._shop = shop
        self.instance = instance
        self.life = life.EngineLife()
        self._events: asyncio.Queue[tuple[int | None, life.Event]] = asyncio.Queue()
        self._generation = 0
        self._tasks = Tasks(f"instance {instance.name}", self._task_failed)
        self._model: ModelForWorker | None = None
        self._installed: Installed | None = None
        self._engine: Engine | None = None
        self._lease: Lease | None = None
        #: What its engine has outside the data directory; empty for nothing.
        self._folder = ""
        self._last_message = ""
        self._peak = Peak()
        self._notebook = Notebook(shop.config.run_dir)
        #: By the server's count, which only this driver raises.
        self._restarts = instance.restart_count
        #: How things stand was found out.
        self._begun = False
        #: Another worker has the instance now: what is left of it here is no news of it.
        self._left = False
        self._answering_since: float | None = None

    @property
    def log_path(self) -> Path:
        """The log of its engine; there is none before the first start."""
        return log_path(self._shop.config.log_dir, self.instance.name)

    def suits(self, name: str, member: InstanceMember | None) -> bool:
        """Tell whether it drives what the server now has under its number: restored data may make that another thing."""
        return self.instance.name == name and member is None

    @property
    def leads(self) -> bool:
        """Tell whether its engine is the one that answers requests."""
        return True

    def update(self, instance: ModelInstancePublic) -> None:
        """Take in how the instance is now; only what has other members goes by that."""

    @property
    def serves(self) -> bool:
        """Tell whether its engine answers."""
        return self.life.state is InstanceState.RUNNING

    @property
    def resting(self) -> bool:
        """Tell whether it failed, so that a new assignment starts it afresh."""
        return self.life.state is InstanceState.ERROR

    def assign(self, instance: ModelInstancePublic) -> None:
        """Start again after an error: the server placed the instance here once more."""
        self.instance = instance
        self._post(None, life.Assigned())

    def drain(self, instance: ModelInstancePublic) -> None:
        """End the engine once its clients have left: the server sends no new ones."""
        self.instance = instance
        # Before, an engine that is about to be adopted would be taken for none.
        if self._begun and not self.life.draining:
            self._post(None, life.Draining(self._time_to_drain()))

    async def measure(self, vram: int) -> None:
        """Measure what the engine takes, and tell the server when it serves and has taken more than before.

        ``vram`` is what the drivers say of its GPU memory, in bytes.
        """
        if (engine := self._engine) is None or not engine.pid:
            return
        peak, mapped = self._peak, self.instance.memory.mapped
        await asyncio.to_thread(peak.measure, engine.pid, vram, mapped=mapped)
        # Another engine, which is measured anew, may have come meanwhile.
        if peak is self._peak and self.serves and (news := peak.news()) is not None:
            self._report(life.Report(self.life.state, self._last_message), peak=news)

    def withdraw(self) -> None:
        """End the engine; :meth:`run` returns once it is gone."""
        self._post(None, life.Withdrawn())

    def leave(self) -> None:
        """End the engine as :meth:`drain` does, without a word to the server: the instance was placed elsewhere."""
        self._left = True
        if not self._begun or self._model is None:
            self.withdraw()
        elif not self.life.draining:
            self._post(None, life.Draining(self._model.rollout.drain_seconds))

    def report_again(self) -> None:
        """Tell the server how things are: it had lost sight of this worker."""
        if self.life.state is not InstanceState.SCHEDULED:
            self._report(life.Report(self.life.state, self._last_message))

    async def run(self) -> None:
        """Drive the instance until it is withdrawn. When cancelled, the engine goes on running."""
        try:
            self._start(
                "begin", persist(self._begin, f"instance {self.instance.name}: finding out how it stands")
            )
            while not self.life.withdrawn:
                generation, event = await self._events.get()
                if generation in (None, self._generation):
                    await self._handle(event)
        finally:
            await self._tasks.stop()

    # Events ---------------------------------------------------------------------------------------------

    def _post(self, generation: int | None, event: life.Event) -> None:
        self._events.put_nowait((generation, event))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(name, work)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._post(self._generation, life.Failed(f"{name} failed: {error}; see the log of the worker"))

    async def _handle(self, event: life.Event) -> None:
        before = self.life
        self.life, instructions = life.step(before, event, self._shop.config.limits)
        await self._notebook.note(self.instance, (before, self.life), event, instructions)
        if isinstance(event, life.Assigned) and instructions:
            # The wait for a restart is over before its time.
            await self._new_generation()
        for instruction in instructions:
            if (error := await self._try(instruction)) is None:
                continue
            if isinstance(instruction, life.Kill):
                # Whatever is left has its record; the report must not wait for it.
                log.error("instance %s: %s", self.instance.name, error)
                continue
            self._failed(error)
            return

    async def _try(self, instruction: life.Instruction) -> GPUStackError | None:
        """Follow one instruction; return the trouble there was."""
        try:
            await self._do(instruction)
        except GPUStackError as error:
            return error
        except Exception as error:  # a defect must not leave the instance without a driver
            log.exception("instance %s: %s failed", self.instance.name, type(instruction).__name__)
            return GPUStackError(f"the worker failed: {error}; see its log")
        return None

    def _failed(self, error: GPUStackError) -> None:
        never = isinstance(error, Refused | InvalidInput) or (
            isinstance(error, InstallError | DownloadError) and not error.again
        )
        self._post(self._generation, life.Failed(error.message, again=not never))

    async def _new_generation(self) -> None:
        self._generation += 1
        await self._tasks.stop()

    # Instructions ---------------------------------------------------------------------------------------

    async def _do(self, instruction: life.Instruction) -> None:
        match instruction:
            case life.Install():
                self._start("install", self._install())
            case life.Spawn(seconds):
                await self._spawn()
                self._start("start limit", self._limit_start(seconds))
            case life.Await(seconds):
                self._start("start limit", self._limit_start(seconds))
            case life.ProbeAfter(seconds):
                if self._engine is not None:
                    self._start("probe", self._probe(self._engine, seconds))
            case life.Kill():
                await self._kill()
            case life.AwaitIdle(seconds):
                self._start("draining", self._await_idle(seconds))
            case life.RestartAfter(seconds):
                self._start("restart", self._later(seconds, life.RestartDue()))
            case life.Report():
                self._report(instruction)

    async def _begin(self) -> None:
        """Find out how things stand: adopt what runs, go on waiting for a restart, start, or rest."""
        generation, config, one = self._generation, self._shop.config, self.instance
        record = await asyncio.to_thread(own_record, config.run_dir, one.id, one.name, grace=config.grace)
        memory = await self._notebook.read(self.instance)
        engine = await self._adopt(record) if record is not None else None
        model = self._model = await self._shop.model_if_any(self.instance, self._model)
        restarts = model is not None and model.restart_on_error
        self.life = replace(self.life, restarts=restarts, failures=memory.failures)
        if engine is not None:
            self._post(generation, life.Adopted())
            # Not before: an end of the engine means nothing while it does not count as started.
            self._start("engine", self._watch(engine))
        elif self.instance.state is InstanceState.ERROR and not restarts:
            self.life = replace(self.life, state=InstanceState.ERROR)
        elif model is not None:
            self._post(None, first_event(memory, record, restarts=restarts))
        self._begun = True
        if self.instance.draining_since is not None:
            self._post(None, life.Draining(self._time_to_drain()))

    async def _adopt(self, record: EngineRecord) -> Engine | None:
        config = self._shop.config
        engine = await engines.adopt(config.run_dir, record)
        if engine is None:
            self._shop.ports.rest(record.port)
            # The engine itself is gone, but what it had started may be left.
            await clear(config.run_dir, self.instance.id, grace=config.grace)
            return None
        log.info("instance %s: found its engine running as %s", self.instance.name, engine.what)
        self._lease = self._shop.ports.adopt(record.port, self.instance.name)
        self._engine = engine
        return engine

    async def _install(self) -> None:
        generation = self._generation
        try:
            self._model = await self._shop.model(self.instance, self._model)
            path = await self._files(self._model)
            installed = await self._shop.desk.install(self.instance, self._model, path, self._say)
            self._installed = installed
            await self._before_start(installed)
        except GPUStackError as error:
            self._failed(error)
            return
        self.life = replace(self.life, weight_bytes=installed.facts.weight_bytes)
        self._post(generation, life.Installed())

    async def _before_start(self, installed: Installed) -> None:
        """Do what is to be done once the engine is installed and before it is started: alone, nothing."""

    async def _plan(self, port: int) -> Any:
        """Return what to run, as the desk lays it out. Raises GPUStackError."""
        assert self._installed is not None
        assert self._model is not None
        return await self._shop.desk.plan(self._installed, self.instance, self._model, port=port)

    async def _files(self, model: ModelPublic) -> str:
        """Return what the engine loads, once it is on this machine."""
        if model.source is Source.BUNDLED:
            # Not the path that was noted: an upgrade of the plugin may have moved the files.
            return str(await self._shop.bundled.path(model.bundled_name))
        if model.source is not Source.HUGGINGFACE:
            return self.instance.resolved_path or model.local_path
        revision = self.instance.resolved_revision
        path = await self._shop.hub.fetch(HubSource.of(model), revision, self._downloading)
        return str(path)

    def _downloading(self, progress: Progress) -> None:
        """Show how far the files are."""
        report = life.Report(InstanceState.DOWNLOADING, progress.text)
        self._report(report, download_progress=round(progress.percent, 1))

    def _say(self, line: str) -> None:
        """Show a step of a long installation."""
        log.info("instance %s: %s", self.instance.name, line)
        self._report(life.Report(InstanceState.INITIALIZING, line))

    async def _spawn(self) -> None:
        config, instance = self._shop.config, self.instance
        assert self._installed is not None
        assert self._model is not None
        await make_way(config.run_dir, instance.id, grace=config.grace)
        if self._lease is not None:
            self._lease.free()
        lease = self._shop.ports.take(instance.name)
        try:
            todo = await self._plan(lease.port)
            self._engine = engine = await engines.start(
                config.run_dir,
                Launch(
                    instance_id=instance.id,
                    instance_name=instance.name,
                    plan=todo.plan,
                    lease=lease,
                    log_path=self.log_path,
                    scratch=config.scratch(instance.id),
                    env=(*todo.env, self._model.env),
                    container=todo.container,
                    memory_limit=self._installed.config.memory_limit,
                    attempt=instance.attempt,
                    folder=self._folder,
                ),
            )
        except BaseException:
            lease.free()
            raise
        self._lease = lease
        log.info("instance %s: %s on port %d", instance.name, engine.what, lease.port)
        self._start("engine", self._watch(engine))

    async def _watch(self, engine: Engine) -> None:
        generation = self._generation
        description = await engine.wait()
        tail = await asyncio.to_thread(engine.tail)
        why = await self._shop.desk.failure(
            self.instance, await asyncio.to_thread(engine.tail, count=_MOST_LINES)
        )
        log.warning(
            "instance %s: the engine %s%s", self.instance.name, description, f": {why}" if why else ""
        )
        self._post(generation, life.Exited(description, tail, why))

    async def _limit_start(self, seconds: float) -> None:
        generation = self._generation
        await asyncio.sleep(seconds)
        path = self._model.health_check_path if self._model is not None else ""
        self._post(generation, life.StartTimedOut(seconds, await self._tail(), path))

    async def _probe(self, engine: Engine, seconds: float) -> None:
        generation, record = self._generation, engine.record
        await asyncio.sleep(seconds)
        found = await look(record)
        if found.ready:
            # Once: while the engine listens nobody else can.
            if self._answering_since is None and (who := await asyncio.to_thread(intruder, engine)):
                message = f"port {record.port}, which was meant for the engine, is taken by {who}"
                self._post(generation, life.Failed(message))
                return
            # From here on: a long time of loading is no proof that it runs well.
            self._answering_since = self._answering_since or moment()
            self._post(generation, life.Answered(moment() - self._answering_since))
        else:
            running = self.life.state is InstanceState.RUNNING
            line = f"the engine answers {found.refusal} at {record.ready_path}, by which it is to tell that it is ready"
            if found.refusal and self.life.state is InstanceState.STARTING and line != self._last_message:
                self._report(life.Report(self.life.state, line))
            self._post(generation, life.Silent(await self._tail() if running else ""))

    async def _later(self, seconds: float, event: life.Event) -> None:
        generation = self._generation
        await asyncio.sleep(seconds)
        self._post(generation, event)

    async def _await_idle(self, seconds: float) -> None:
        assert self._engine is not None
        log.info("instance %s: drains, for %.0f s at most", self.instance.name, seconds)
        left = await until_idle(self._engine.record.port, seconds=seconds)
        if left:
            log.warning("instance %s: cuts off %d clients after %.0f s", self.instance.name, left, seconds)
        self._post(None, life.Drained())

    def _time_to_drain(self) -> float:
        """Return the seconds that clients have still, which count on over a restart of the worker."""
        return max(0.0, self.instance.drain_seconds - self._notebook.memory.drained_for())

    async def _tail(self) -> str:
        return await asyncio.to_thread(self._engine.tail) if self._engine is not None else ""

    async def _kill(self) -> None:
        await self._new_generation()
        config, number = self._shop.config, self.instance.id
        engine, self._engine, self._answering_since = self._engine, None, None
        self._peak = Peak()
        insist = self._not_ended if self.life.withdrawn else None
        gone = await end_all(config.run_dir, number, engine, grace=config.grace, insist=insist)
        if gone and self._lease is not None:
            self._lease.free()

    def _not_ended(self, line: str) -> None:
        """Say why the instance is not gone yet; the server counts its memory until it is."""
        log.error("instance %s: %s", self.instance.name, line)
        if self.life.draining:
            self._report(life.Report(self.life.state, line))

    def _report(self, report: life.Report, **more: Any) -> None:
        if self._left:
            return
        self._last_message = report.message
        fields: dict[str, Any] = {"state": report.state, "state_message": report.message[:_MESSAGE], **more}
        if self._installed is not None:
            fields["resolved_path"] = self._installed.facts.path
        if self._engine is not None:
            fields |= {"pid": self._engine.pid or None, "port": self._engine.record.port}
        if report.restarted:
            self._restarts += 1
            fields |= {"restarted": True, "restart_count": self._restarts}
        if report.ended:
            fields["ended"] = True
        self._shop.report(self.instance.id, InstanceReport(**fields))
