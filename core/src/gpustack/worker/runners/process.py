"""One engine as a process: started, watched, adopted, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.process import OWN_SESSION, ProcessId, age, identify, moment, pid_space, wait_gone
from gpustack.kit.tasks import to_the_end
from gpustack.plugin import LaunchPlan
from gpustack.worker.ports import Lease
from gpustack.worker.runners.ending import end_engines
from gpustack.worker.runners.environment import engine_environment
from gpustack.worker.runners.logfile import last_lines, open_fresh
from gpustack.worker.runners.records import (
    EngineRecord,
    digest,
    find_process,
    record_path,
    remove_record,
    write_record,
)

log = logging.getLogger(__name__)

# A handle that is forgotten while its process runs complains; engines may outlive us on purpose.
_handles: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start, and for whom."""

    instance_id: int
    instance_name: str
    plan: LaunchPlan
    lease: Lease
    log_path: Path
    #: Its working directory, when the plan names none; made when it is missing.
    scratch: Path
    #: Environments over the plan's own; a later one wins.
    env: tuple[Mapping[str, str], ...] = ()


class EngineProcess:
    """A running engine. :meth:`start` makes one, :meth:`adopt` takes over one that was left running."""

    def __init__(
        self, run_dir: Path, record: EngineRecord, who: ProcessId, child: subprocess.Popen[bytes] | None
    ) -> None:
        self._run_dir = run_dir
        self._child = child
        self.record = record
        self.who = who

    @classmethod
    async def start(cls, run_dir: Path, launch: Launch) -> EngineProcess:
        """Start the engine. It runs when this returns, but need not answer yet.

        When the caller is cancelled meanwhile, that takes effect once the engine and its record are there.
        Raises GPUStackError with one line when the program cannot be started.
        """
        return await to_the_end(asyncio.to_thread(cls._start, run_dir, launch))

    @classmethod
    def _start(cls, run_dir: Path, launch: Launch) -> EngineProcess:
        plan = launch.plan
        record = EngineRecord(
            instance_id=launch.instance_id,
            instance_name=launch.instance_name,
            port=launch.lease.port,
            log_path=str(launch.log_path),
            argv_digest=digest(plan.argv),
            ready_path=plan.ready.path,
            ready_timeout=plan.ready.timeout,
        )
        try:
            write_record(run_dir, record)
            child = _spawn(run_dir, launch)
        except (OSError, ValueError) as error:
            remove_record(run_dir, launch.instance_id)
            raise GPUStackError(_not_started(plan, error)) from error
        # A process that ended already has no start time to be asked for.
        who = identify(child.pid) or ProcessId(pid=child.pid, started=moment())
        record = replace(record, pid=who.pid, started=who.started, pid_space=pid_space())
        engine = cls(run_dir, record, who, child)
        try:
            write_record(run_dir, record)
        except OSError as error:
            end_engines(run_dir, [record], grace=0.0)
            engine._reap()
            raise GPUStackError(f"the engine's record cannot be written below {run_dir}: {error}") from error
        return engine

    @classmethod
    async def adopt(cls, run_dir: Path, record: EngineRecord) -> EngineProcess | None:
        """Return the engine that ``record`` tells of when it still runs, else None."""
        who = await asyncio.to_thread(find_process, run_dir, record)
        if who is None:
            return None
        if record.process != who:
            record = replace(record, pid=who.pid, started=who.started, pid_space=pid_space())
            try:
                await asyncio.to_thread(write_record, run_dir, record)
            except OSError as error:  # whoever comes next finds it as we did
                log.warning("%s", system_line(error))
        return cls(run_dir, record, who, None)

    @property
    def log_path(self) -> Path:
        """The file it writes to."""
        return Path(self.record.log_path)

    def running_for(self) -> float:
        """Return the seconds since it started."""
        return age(self.who)

    async def wait(self) -> str:
        """Return when it has ended, with how: ``exited with status 1 after 0.3 s``."""
        await wait_gone(self.who)
        after = _seconds(self.running_for())
        return describe_exit(await asyncio.to_thread(self._reap), after)

    def tail(self, *, count: int = 15) -> str:
        """Return the last lines of its log."""
        return last_lines(self.log_path, count=count)

    async def end(self, *, grace: float) -> list[int]:
        """End it with everything it started, and return what is left; its record goes once all are gone."""
        left = await asyncio.to_thread(end_engines, self._run_dir, [self.record], grace=grace)
        await asyncio.to_thread(self._reap)
        return left

    def _reap(self) -> int | None:
        """Return the exit status of a child that has ended; None when it is no child of ours."""
        if self._child is None:
            return None
        try:
            status = self._child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return None
        _handles.discard(self._child)
        return status


def describe_exit(status: int | None, after: str) -> str:
    """Return how a process ended, given the status that subprocess reports, as the end of a sentence."""
    if status is None:
        return f"ended after {after} (how is not known: an earlier worker had started it)"
    if status >= 0:
        return f"exited with status {status} after {after}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
    text = f"was killed by signal {-status} ({name}) after {after}"
    if -status == getattr(signal, "SIGKILL", None):
        text += "; the kernel's out-of-memory killer is a usual cause"
    return text


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _spawn(run_dir: Path, launch: Launch) -> subprocess.Popen[bytes]:
    plan = launch.plan
    launch.scratch.mkdir(parents=True, exist_ok=True)
    env = engine_environment(
        plan.env,
        *launch.env,
        instance_id=launch.instance_id,
        record=str(record_path(run_dir, launch.instance_id)),
    )
    output = open_fresh(launch.log_path)
    try:
        launch.lease.let_go()
        child = subprocess.Popen(
            plan.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=plan.cwd or launch.scratch,
            close_fds=True,
            **OWN_SESSION,
        )
    finally:
        os.close(output)
    _handles.add(child)
    return child


def _not_started(plan: LaunchPlan, error: OSError | ValueError) -> str:
    program = plan.argv[0] if plan.argv else "(nothing)"
    if isinstance(error, OSError) and error.filename is not None and str(error.filename) != program:
        return f"the engine cannot be started: {error.filename}: {error.strerror}"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"the engine {program} cannot be started: {reason}"
