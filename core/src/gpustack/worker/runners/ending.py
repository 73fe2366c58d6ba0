"""Ending engines with all that they started. Light to import: the supervisor uses it when everything stops."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

import psutil

from gpustack.kit.errors import system_line
from gpustack.kit.process import identify, is_running, pid_space, started_at, still_running
from gpustack.kit.threads import in_daemon
from gpustack.worker.runners import cgroup
from gpustack.worker.runners.environment import RECORD_MARKER
from gpustack.worker.runners.private import remove_private
from gpustack.worker.runners.records import (
    CONTAINER,
    CONTAINERS_USED,
    EngineRecord,
    is_stranger,
    memories_dir,
    read_record,
    read_records,
    record_path,
    records_dir,
    unrecorded,
)

log = logging.getLogger(__name__)

#: Seconds that killing for good may take.
_FOR_GOOD = 2.0


def end_engines(run_dir: Path, records: Sequence[EngineRecord], *, grace: float) -> str:
    """End the engines of ``records`` with everything they started, all at once; blocks until they are gone.

    Politely first, after ``grace`` seconds for good. Returns a line for what is left all the same, "" for nothing; the
    records of that stay, so that the next attempt finds it.
    """
    if not records:
        return ""
    # Where a container engine answers it ends its containers; where it does not, their processes end like others.
    contained = [record for record in records if record.runner == CONTAINER]
    ending = _end_containers(run_dir, contained, grace=grace) if contained else None
    wanted = {str(record_path(run_dir, record.instance_id)): record for record in records}
    members = _members(wanted)
    _signal(members, kill=False)
    alive = still_running(members, wait=grace)
    deadline = time.monotonic() + _FOR_GOOD
    # Those found first stay meant: once a leader is gone, its session may tell nothing any more.
    while (alive := still_running({*alive, *_members(wanted)}, wait=0)) and time.monotonic() < deadline:
        for record in records:
            cgroup.kill(record.cgroup)
        _signal(alive, kill=True)
        alive = still_running(alive, wait=0.5)
    troubles = ending.result() if ending is not None else {}
    if alive:
        line = stuck(sorted(each.pid for each in alive))
        log.error("%s", line)
        return line
    left = ""
    for path, record in wanted.items():
        if (trouble := troubles.get(record.instance_id, "")) != "":
            log.warning("instance %s: %s", record.instance_name, trouble)
            # A process that was seen to end has ended, whatever becomes of its container.
            if record.process is None:
                left = trouble
                continue
        cgroup.remove(record.cgroup)
        remove_private(record.folder)
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:  # it tells of no running process any more
            log.warning("%s", system_line(error))
    return left


def _end_containers(
    run_dir: Path, records: Sequence[EngineRecord], *, grace: float
) -> Future[dict[int, str]]:
    from gpustack.worker.runners.container_ending import end_containers

    return in_daemon(lambda: end_containers(run_dir, records, grace=grace), name="ends containers")


def stuck(left: Sequence[int]) -> str:
    """Return what is said of processes of an engine that are left after it was ended for good."""
    which = "process" if len(left) == 1 else "processes"
    return (
        f"{which} {', '.join(map(str, left))} of the engine cannot be ended: a device or a disk that does not "
        "answer holds it, or it is another user's"
    )


def sweep_containers(run_dir: Path, *, keep: Collection[int]) -> list[int]:
    """Remove containers of this data directory that belong to instances other than ``keep``; blocks.

    Returns the instances that had some. Costs nothing where there never was a container.
    """
    if not (run_dir / CONTAINERS_USED).exists():
        return []
    from gpustack.worker.runners.container_ending import sweep

    return sweep(run_dir, keep=keep)


def end_recorded(run_dir: Path, *, grace: float = 4.0) -> int:
    """End every engine that is written down below ``run_dir``; return how many records there were.

    Needs nothing of the worker, which may be dead. Records that cannot be read, or that somebody removed, go by the
    marker alone.
    """
    records = [*read_records(run_dir), *unrecorded(run_dir)]
    known = {record.instance_id for record in records}
    unreadable = [
        EngineRecord(instance_id=int(path.stem), instance_name="", port=0, log_path="", argv_digest="")
        for path in records_dir(run_dir).glob("*.json")
        if path.stem.isdecimal() and int(path.stem) not in known
    ]
    end_engines(run_dir, [*records, *unreadable], grace=grace)
    left = {record.instance_id for record in read_records(run_dir)}
    strays = set(sweep_containers(run_dir, keep=left)) - known - {each.instance_id for each in unreadable}
    # Whoever starts everything anew waits for no start that failed before.
    shutil.rmtree(memories_dir(run_dir), ignore_errors=True)
    return len(records) + len(unreadable) + len(strays)


def own_record(run_dir: Path, instance_id: int, name: str, *, grace: float) -> EngineRecord | None:
    """Return the record of an instance. Blocks.

    After the server's data were restored, the number may have been another instance's before, whose engine is ended.
    """
    record = read_record(record_path(run_dir, instance_id))
    if record is None or record.instance_name == name:
        return record
    log.warning("instance %s: ends the engine of %s, which had its number", name, record.instance_name)
    end_engines(run_dir, [record], grace=grace)
    return None


def _members(wanted: dict[str, EngineRecord]) -> list[psutil.Process]:
    """Return the running processes of these engines: by group, session or marker, and what descends from any."""
    sessions = _sessions(wanted)
    grouped = {pid for record in wanted.values() for pid in cgroup.members(record.cgroup)}
    found: dict[int, psutil.Process] = {}
    parents: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            parents.setdefault(process.ppid(), []).append(process)
            known = process.pid in grouped or _marker(process) in wanted
            if known or _of_session(process, sessions.get(_session(process))):
                found[process.pid] = process
    queue = list(found)
    while queue:
        for child in parents.get(queue.pop(), ()):
            if child.pid not in found:
                found[child.pid] = child
                queue.append(child.pid)
    return list(found.values())


def owners(run_dir: Path, pids: Collection[int]) -> dict[int, int]:
    """Return the instance of each of these processes that belongs to a recorded engine: by session or by marker."""
    records = {str(record_path(run_dir, each.instance_id)): each for each in read_records(run_dir)}
    sessions = _sessions(records)
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is not ours to look at
            process = psutil.Process(pid)
            if (record := records.get(_marker(process))) is not None:
                found[pid] = record.instance_id
            # The marker is lost where a program writes another title over its environment.
            elif _of_session(process, session := sessions.get(_session(process))) and session is not None:
                found[pid] = session[0]
    return found


def _sessions(wanted: dict[str, EngineRecord]) -> dict[int, tuple[int, float]]:
    """Return the sessions of these engines by number: of which instance, and since when."""
    return {
        record.pid: (record.instance_id, since)
        for record in wanted.values()
        if (since := _session_since(record)) is not None
    }


def _session_since(record: EngineRecord) -> float | None:
    """Return the time since when processes in the session of the record's number are the engine's; None: none are.

    A number is not given to another process while a session bears it, so without its leader the session is still
    the engine's; but only where numbers mean what they did when the record was written. After a restart of the
    machine or the container a stranger's daemon may have that session, whose leader is gone as well.
    """
    if (who := record.process) is None:
        return None
    if is_running(who):
        return None if is_stranger(who.pid, record.instance_id) else 0.0
    if identify(who.pid) is None and record.pid_space and record.pid_space == pid_space():
        return record.started
    return None


def _of_session(process: psutil.Process, session: tuple[int, float] | None) -> bool:
    """Tell whether a process of a recorded session, of which instance and since when, is the engine's."""
    if session is None:
        return False
    instance_id, since = session
    return started_at(process) >= since and not is_stranger(process.pid, instance_id)


def _session(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return process.pid
    return os.getsid(process.pid)


def _marker(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(RECORD_MARKER, "")
    return ""


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if kill:
                process.kill()
            else:
                process.terminate()
