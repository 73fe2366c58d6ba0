"""The hands of one instance: does what :mod:`gpustack.lifecycle.engine` says and tells it what happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, InvalidInput, NotFound
from gpustack.kit.tasks import Tasks
from gpustack.lifecycle import engine as life
from gpustack.plugin import Refused
from gpustack.schemas import InstanceReport, InstanceState, ModelInstancePublic, ModelPublic
from gpustack.worker.artifacts import InstallError
from gpustack.worker.config import WorkerConfig
from gpustack.worker.desk import Desk, Installed
from gpustack.worker.ports import Lease, PortPool
from gpustack.worker.probe import answers
from gpustack.worker.runners.ending import end_engines
from gpustack.worker.runners.logfile import log_path
from gpustack.worker.runners.process import EngineProcess, Launch
from gpustack.worker.runners.records import EngineRecord, read_record, record_path

log = logging.getLogger(__name__)

_MESSAGE = 16_000


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all instances of a worker share."""

    config: WorkerConfig
    desk: Desk
    ports: PortPool
    #: Returns the model's present description.
    fetch_model: Callable[[int], Awaitable[ModelPublic]]
    #: Takes a report for the server; never waits.
    report: Callable[[int, InstanceReport], None]


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
        self._model: ModelPublic | None = None
        self._installed: Installed | None = None
        self._engine: EngineProcess | None = None
        self._lease: Lease | None = None
        self._last_message = ""

    @property
    def log_path(self) -> Path:
        """The log of its engine; there is none before the first start."""
        return log_path(self._shop.config.log_dir, self.instance.name)

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

    def withdraw(self) -> None:
        """End the engine; :meth:`run` returns once it is gone."""
        self._post(None, life.Withdrawn())

    def report_again(self) -> None:
        """Tell the server how things are: it had lost sight of this worker."""
        if self.life.state is not InstanceState.SCHEDULED:
            self._report(life.Report(self.life.state, self._last_message))

    async def run(self) -> None:
        """Drive the instance until it is withdrawn. When cancelled, the engine goes on running."""
        try:
            self._start("begin", self._begin())
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
        self.life, instructions = life.step(self.life, event, self._shop.config.limits)
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
            isinstance(error, InstallError) and not error.again
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
            case life.RestartAfter(seconds):
                self._start("restart", self._later(seconds, life.RestartDue()))
            case life.Report():
                self._report(instruction)

    async def _begin(self) -> None:
        """Find out how things stand: adopt what runs, or start, or rest after an error that was final."""
        generation = self._generation
        record = await asyncio.to_thread(
            read_record, record_path(self._shop.config.run_dir, self.instance.id)
        )
        engine = await self._adopt(record) if record is not None else None
        try:
            model = self._model = await self._fetch_model()
        except NotFound:
            log.warning("instance %s: its model is gone", self.instance.name)
            self._post(None, life.Withdrawn())
            return
        self.life = replace(self.life, restarts=model.restart_on_error)
        if engine is not None:
            self._post(generation, life.Adopted())
            # Not before: an end of the engine means nothing while it does not count as started.
            self._start("engine", self._watch(engine))
        elif self.instance.state is InstanceState.ERROR and not model.restart_on_error:
            self.life = replace(self.life, state=InstanceState.ERROR)
        else:
            self._post(generation, life.Assigned())

    async def _adopt(self, record: EngineRecord) -> EngineProcess | None:
        config = self._shop.config
        engine = await EngineProcess.adopt(config.run_dir, record)
        if engine is None:
            # The engine itself is gone, but what it had started may be left.
            await asyncio.to_thread(end_engines, config.run_dir, [record], grace=config.grace)
            return None
        log.info("instance %s: found its engine running as process %d", self.instance.name, engine.who.pid)
        self._lease = self._shop.ports.adopt(record.port, self.instance.name)
        self._engine = engine
        return engine

    async def _fetch_model(self) -> ModelPublic:
        """Return the model as the server has it, or as last seen while the server is away."""
        wait = Backoff(first=0.5, limit=15.0)
        while True:
            try:
                return await self._shop.fetch_model(self.instance.model_id)
            except NotFound:
                raise
            except GPUStackError as error:
                if self._model is not None:
                    return self._model
                log.info("instance %s: %s", self.instance.name, error)
            await asyncio.sleep(wait.next())

    async def _install(self) -> None:
        generation = self._generation
        try:
            self._model = await self._fetch_model()
            installed = await self._shop.desk.install(self.instance, self._model, self._say)
        except GPUStackError as error:
            self._failed(error)
            return
        self._installed = installed
        self.life = replace(self.life, weight_bytes=installed.facts.weight_bytes)
        self._post(generation, life.Installed())

    def _say(self, line: str) -> None:
        """Show a step of a long installation."""
        log.info("instance %s: %s", self.instance.name, line)
        self._report(life.Report(InstanceState.INITIALIZING, line))

    async def _spawn(self) -> None:
        config, instance = self._shop.config, self.instance
        assert self._installed is not None
        assert self._model is not None
        lease = self._shop.ports.take(instance.name)
        try:
            plan, exposure = await self._shop.desk.plan(
                self._installed, instance, self._model, port=lease.port
            )
            self._engine = engine = await EngineProcess.start(
                config.run_dir,
                Launch(
                    instance_id=instance.id,
                    instance_name=instance.name,
                    plan=plan,
                    lease=lease,
                    log_path=self.log_path,
                    scratch=config.scratch(instance.id),
                    env=(exposure, self._model.env),
                ),
            )
        except BaseException:
            lease.free()
            raise
        self._lease = lease
        log.info("instance %s: process %d on port %d", instance.name, engine.who.pid, lease.port)
        self._start("engine", self._watch(engine))

    async def _watch(self, engine: EngineProcess) -> None:
        generation = self._generation
        description = await engine.wait()
        tail = await asyncio.to_thread(engine.tail)
        log.warning("instance %s: the engine %s", self.instance.name, description)
        self._post(generation, life.Exited(description, tail))

    async def _limit_start(self, seconds: float) -> None:
        generation = self._generation
        await asyncio.sleep(seconds)
        self._post(generation, life.StartTimedOut(seconds, await self._tail()))

    async def _probe(self, engine: EngineProcess, seconds: float) -> None:
        generation, record = self._generation, engine.record
        await asyncio.sleep(seconds)
        if await answers(record.port, record.ready_path, timeout=record.ready_timeout):
            self._post(generation, life.Answered(engine.running_for()))
        else:
            running = self.life.state is InstanceState.RUNNING
            self._post(generation, life.Silent(await self._tail() if running else ""))

    async def _later(self, seconds: float, event: life.Event) -> None:
        generation = self._generation
        await asyncio.sleep(seconds)
        self._post(generation, event)

    async def _tail(self) -> str:
        return await asyncio.to_thread(self._engine.tail) if self._engine is not None else ""

    async def _kill(self) -> None:
        await self._new_generation()
        config = self._shop.config
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.end(grace=config.grace)
        else:
            path = record_path(config.run_dir, self.instance.id)
            if (record := await asyncio.to_thread(read_record, path)) is not None:
                await asyncio.to_thread(end_engines, config.run_dir, [record], grace=config.grace)
        if self._lease is not None:
            self._lease.free()
            self._lease = None

    def _report(self, report: life.Report) -> None:
        self._last_message = report.message
        fields: dict[str, Any] = {"state": report.state, "state_message": report.message[:_MESSAGE]}
        if self._engine is not None:
            fields |= {"pid": self._engine.who.pid, "port": self._engine.record.port}
        if report.restarted:
            fields["restarted"] = True
        self._shop.report(self.instance.id, InstanceReport(**fields))
