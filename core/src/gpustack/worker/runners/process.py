"""One engine as a process: started, watched, adopted, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.limits import limit_process
from gpustack.kit.process import OWN_SESSION, ProcessId, age, identify, moment, pid_space, wait_gone
from gpustack.kit.tasks import to_the_end
from gpustack.plugin import LaunchPlan
from gpustack.worker.runners import cgroup
from gpustack.worker.runners.ending import end_engines
from gpustack.worker.runners.engine import Launch
from gpustack.worker.runners.environment import engine_environment
from gpustack.worker.runners.logfile import last_lines, open_fresh
from gpustack.worker.runners.private import make_private, remove_private
from gpustack.worker.runners.records import (
    EngineRecord,
    digest,
    find_process,
    record_path,
    remove_record,
    write_record,
)

log = logging.getLogger(__name__)

#: Files that an engine may have open, where the system allows that many.
_OPEN_FILES = 1 << 20
# A handle that is forgotten while its process runs complains; engines may outlive us on purpose.
_handles: set[subprocess.Popen[bytes]] = set()


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
        plan, path = launch.plan, str(record_path(run_dir, launch.instance_id))
        record = EngineRecord(
            instance_id=launch.instance_id,
            instance_name=launch.instance_name,
            port=launch.lease.port,
            log_path=str(launch.log_path),
            argv_digest=digest(plan.argv),
            ready_path=plan.ready.path,
            ready_timeout=plan.ready.timeout,
            ready_address=plan.ready.address,
            attempt=launch.attempt,
            folder=launch.folder,
        )
        try:
            group = cgroup.make(path, memory_limit=launch.memory_limit)
            record = replace(record, cgroup=group)
            write_record(run_dir, record)
            make_private(launch.folder)
            child = _spawn(run_dir, launch, group)
        except (OSError, ValueError) as error:
            remove_record(run_dir, launch.instance_id)
            cgroup.remove(record.cgroup)
            remove_private(record.folder)
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
    def pid(self) -> int:
        """Its first process."""
        return self.who.pid

    @property
    def what(self) -> str:
        """What runs."""
        return f"process {self.pid}"

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
        after = spoken_seconds(self.running_for())
        return describe_exit(await asyncio.to_thread(self._reap), after)

    def tail(self, *, count: int = 15) -> str:
        """Return the last lines of its log."""
        return last_lines(self.log_path, count=count)

    async def end(self, *, grace: float) -> str:
        """End it with everything it started; see :meth:`gpustack.worker.runners.engine.Engine.end`."""
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


def spoken_seconds(value: float) -> str:
    """Return a time in seconds as the sentence about an engine's end has it."""
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _spawn(run_dir: Path, launch: Launch, group: str) -> subprocess.Popen[bytes]:
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
    if group:
        cgroup.put(group, child.pid)
    limit_process(child.pid, open_files=_OPEN_FILES)
    return child


def _not_started(plan: LaunchPlan, error: OSError | ValueError) -> str:
    program = plan.argv[0] if plan.argv else "(nothing)"
    if isinstance(error, OSError) and error.filename is not None and str(error.filename) != program:
        return f"the engine cannot be started: {error.filename}: {error.strerror}"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"the engine {program} cannot be started: {reason}"
