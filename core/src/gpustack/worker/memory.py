"""What a worker writes down about an instance for the worker after it: failed starts, and since when it drains.

It lies beside the record of the engine, which goes with the engine. Losing it costs no more than a start that comes
too early, so whatever cannot be read counts as nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from gpustack.kit.paths import write_atomic
from gpustack.kit.process import moment, pid_space
from gpustack.lifecycle import engine as life
from gpustack.schemas import InstanceState, ModelInstancePublic
from gpustack.worker.runners.logfile import last_lines
from gpustack.worker.runners.records import EngineRecord, memories_dir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One instance. Times are in seconds as :func:`gpustack.kit.process.moment` counts them."""

    #: Which description of the model the failures belong to.
    spec: str = ""
    #: Those in a row.
    failures: int = 0
    #: A start is still to come: ``wait`` seconds after the last failure, which was told by ``message``.
    waiting: bool = False
    wait: float = 0.0
    next_start: float = 0.0
    message: str = ""
    #: When the worker learned that the instance drains; 0: it does not.
    draining_since: float = 0.0

    def left(self) -> float:
        """Return the seconds until the next start, whatever happened to clocks never more than were to be waited."""
        return min(max(0.0, self.next_start - moment()), self.wait)

    def drained_for(self) -> float:
        """Return the seconds since the worker learned of the draining; 0 when that was before this boot."""
        return max(0.0, moment() - self.draining_since) if self.draining_since else 0.0


def recall(run_dir: Path, instance_id: int) -> Memory:
    """Return what is remembered of an instance."""
    path = _path(run_dir, instance_id)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        memory = Memory(**{each.name: values[each.name] for each in fields(Memory) if each.name in values})
        numbers = (memory.failures, memory.wait, memory.next_start, memory.draining_since)
        whole = all(isinstance(each, int | float) for each in numbers) and isinstance(memory.message, str)
    except FileNotFoundError:
        return Memory()
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s is not understood and left out: %s", path, error)
        return Memory()
    return memory if whole else Memory()


def remember(run_dir: Path, instance_id: int, memory: Memory) -> None:
    """Keep ``memory``, or nothing when there is nothing in it. Trouble with the disk is logged."""
    path = _path(run_dir, instance_id)
    try:
        if memory == Memory(spec=memory.spec):
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, json.dumps(asdict(memory)), mode=0o600)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def forget_all_but(run_dir: Path, instances: Collection[int]) -> None:
    """Remove what is remembered of other instances."""
    for path in memories_dir(run_dir).glob("*.json"):
        if not (path.stem.isdecimal() and int(path.stem) in instances):
            path.unlink(missing_ok=True)


def _path(run_dir: Path, instance_id: int) -> Path:
    return memories_dir(run_dir) / f"{instance_id}.json"


class Notebook:
    """Keeps the memory of one instance on disk as its engine's life goes on."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.memory = Memory()

    async def read(self, instance: ModelInstancePublic) -> Memory:
        """Return what the worker before wrote down; failures of another description of the model count no more."""
        found = await asyncio.to_thread(recall, self._run_dir, instance.id)
        same = found.spec == instance.spec_digest
        self.memory = found if same else Memory(draining_since=found.draining_since)
        return self.memory

    async def note(
        self,
        instance: ModelInstancePublic,
        lives: tuple[life.EngineLife, life.EngineLife],
        event: life.Event,
        todo: Sequence[life.Instruction],
    ) -> None:
        """Write down what follows from ``event``, which led from the first of ``lives`` to the second one."""
        memory = _after(self.memory, lives, event, todo, instance.spec_digest)
        if memory != self.memory:
            self.memory = memory
            await asyncio.to_thread(remember, self._run_dir, instance.id, memory)


def first_event(memory: Memory, record: EngineRecord | None, *, restarts: bool) -> life.Event:
    """Return what happened to an instance, without an engine, that a worker finds when it starts."""
    if memory.waiting and restarts:
        return life.Resumed(memory.failures, memory.left(), memory.message)
    if record is not None and _ran(record):
        return life.Exited("ended while no worker watched it", last_lines(Path(record.log_path)))
    return life.Assigned()


def _ran(record: EngineRecord) -> bool:
    """Tell whether the engine was started since this machine was, so that it must have ended by itself."""
    if record.pid:
        return record.pid_space == pid_space()
    return bool(record.container)


def _after(
    memory: Memory,
    lives: tuple[life.EngineLife, life.EngineLife],
    event: life.Event,
    todo: Sequence[life.Instruction],
    spec: str,
) -> Memory:
    before, new = lives
    match event:
        case life.Resumed():
            return memory
        case life.RestartDue():
            return replace(memory, waiting=False)
        case life.Draining():
            return memory if memory.draining_since else replace(memory, draining_since=moment())
    wait = next((each.seconds for each in todo if isinstance(each, life.RestartAfter)), None)
    if wait is not None:
        told = next((each.message for each in todo if isinstance(each, life.Report)), "")
        return Memory(
            spec=spec,
            failures=new.failures,
            waiting=True,
            wait=wait,
            next_start=moment() + wait,
            message=told,
            draining_since=memory.draining_since,
        )
    final = new.state is InstanceState.ERROR and before.state is not InstanceState.ERROR
    forgiven = new.failures < before.failures
    return Memory(draining_since=memory.draining_since) if final or forgiven else memory
