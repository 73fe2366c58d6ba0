"""One engine as a container: started, watched, adopted, ended, by Docker or by whatever speaks as it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpustack.kit.errors import GPUStackError, InvalidInput, system_line
from gpustack.kit.limits import group_id, locked_memory, most_open_files, user_id
from gpustack.kit.process import ProcessId, age, identify, is_running, moment, pid_space
from gpustack.kit.tasks import to_the_end
from gpustack.kit.text import human_bytes
from gpustack.kit.threads import in_daemon
from gpustack.worker.runners.container_api import (
    connected,
    engine_of,
    is_ours,
    labels,
    note_used,
    of_instance,
    remove,
    said,
)
from gpustack.worker.runners.container_log import ContainerLog, close, position_path
from gpustack.worker.runners.daemon import Daemon, NoContainerEngine, find
from gpustack.worker.runners.daemon_words import start_trouble
from gpustack.worker.runners.ending import end_engines
from gpustack.worker.runners.engine import Container, Launch
from gpustack.worker.runners.environment import INSTANCE_MARKER, RECORD_MARKER
from gpustack.worker.runners.logfile import last_lines, open_fresh
from gpustack.worker.runners.process import describe_exit, spoken_seconds
from gpustack.worker.runners.records import (
    CONTAINER,
    EngineRecord,
    digest,
    record_path,
    write_record,
)

if TYPE_CHECKING:
    from docker import APIClient

log = logging.getLogger(__name__)

#: Bytes of shared memory at most, which engines of several processes use much of; only what is used takes memory.
_SHARED_MEMORY = 10 << 30
#: Bytes of log that the container engine keeps itself; our own file holds more.
_KEPT_LOG = 16 << 20
_OPEN_FILES = 1 << 20
#: Seconds in which a container engine that is being started anew is waited for.
_RESTARTING = 10.0
#: Seconds between two attempts to reach one that is away.
_LOOK = 0.5
#: Seconds until a log that could not be written is tried again.
_LATER = 3.0


class ContainerEngine:
    """A running engine. :meth:`start` makes one, :meth:`adopt` takes over one that was left running."""

    def __init__(self, run_dir: Path, record: EngineRecord) -> None:
        self._run_dir = run_dir
        self.record = record

    @classmethod
    async def start(cls, run_dir: Path, launch: Launch, container: Container) -> ContainerEngine:
        """Start the engine; see :func:`gpustack.worker.runners.engine.start`. Its image is there."""
        return await to_the_end(asyncio.to_thread(cls._start, run_dir, launch, container))

    @classmethod
    def _start(cls, run_dir: Path, launch: Launch, container: Container) -> ContainerEngine:
        daemon = _find()
        record = EngineRecord(
            instance_id=launch.instance_id,
            instance_name=launch.instance_name,
            port=launch.lease.port,
            log_path=str(launch.log_path),
            argv_digest=digest(launch.plan.argv),
            ready_path=launch.plan.ready.path,
            ready_timeout=launch.plan.ready.timeout,
            ready_address=launch.plan.ready.address,
            attempt=launch.attempt,
            runner=CONTAINER,
            daemon=daemon.url,
        )
        try:
            note_used(run_dir, daemon.url)
            write_record(run_dir, record)
            position_path(run_dir, launch.instance_id).unlink(missing_ok=True)
            os.close(open_fresh(launch.log_path))
            launch.scratch.mkdir(parents=True, exist_ok=True)
            record = _run(run_dir, record, launch, container, daemon)
        except OSError as error:
            end_engines(run_dir, [record], grace=0.0)
            raise GPUStackError(f"the engine cannot be started: {system_line(error)}") from error
        except GPUStackError:
            end_engines(run_dir, [record], grace=0.0)
            raise
        return cls(run_dir, record)

    @classmethod
    async def adopt(cls, run_dir: Path, record: EngineRecord) -> ContainerEngine | None:
        """Return the engine that ``record`` tells of when it still runs, else None.

        Raises NoContainerEngine when that cannot be found out now.
        """
        return await asyncio.to_thread(cls._adopt, run_dir, record)

    @classmethod
    def _adopt(cls, run_dir: Path, record: EngineRecord) -> ContainerEngine | None:
        known = record.process
        if known is not None and is_running(known) and _process(run_dir, record, known.pid) is not None:
            # Nobody need be asked: the process is there, and the container's.
            return cls(run_dir, record)
        try:
            found = _found(run_dir, record)
        except NoContainerEngine:
            # The engine goes on without it, and its own process tells; where that cannot be seen, nobody does.
            if record.process is None:
                raise
            return cls(run_dir, record) if is_running(record.process) else None
        if found is None or not found["State"].get("Running"):
            return None
        now = _known(run_dir, record, found)
        if now != record:
            try:
                write_record(run_dir, now)
            except OSError as error:  # whoever comes next finds it as we did
                log.warning("%s", system_line(error))
        return cls(run_dir, now)

    @property
    def pid(self) -> int:
        """Its first process as this machine numbers it; 0 where that cannot be seen from here."""
        return self.record.pid

    @property
    def what(self) -> str:
        """What runs."""
        name = f"container {self.record.container[:12]}"
        return f"{name} (process {self.pid})" if self.pid else name

    @property
    def log_path(self) -> Path:
        """The file that its log is written to while somebody waits for its end."""
        return Path(self.record.log_path)

    def running_for(self) -> float:
        """Return the seconds since it started."""
        return age(ProcessId(pid=self.pid, started=self.record.started))

    async def wait(self) -> str:
        """Return when it has ended, with how; meanwhile its log is written.

        When this is cancelled, the engine goes on, and nobody writes its log for the time being.
        """
        following = _Following(self._run_dir, self.record)
        ended = asyncio.wrap_future(in_daemon(following.run, name=f"follows {self.record.instance_name}"))
        try:
            return await asyncio.shield(ended)
        finally:
            following.stop()
            # Who catches up with the log afterwards must be the only one who writes it.
            await to_the_end(_over(ended))

    def tail(self, *, count: int = 15) -> str:
        """Return the last lines of its log."""
        return last_lines(self.log_path, count=count)

    async def end(self, *, grace: float) -> str:
        """End the whole container; see :meth:`gpustack.worker.runners.engine.Engine.end`."""
        return await asyncio.to_thread(end_engines, self._run_dir, [self.record], grace=grace)


async def _over(future: asyncio.Future[str]) -> None:
    await asyncio.wait([future], timeout=5.0)
    if future.done() and not future.cancelled():
        future.exception()  # told by whoever awaited it; nobody needs to hear of it twice


def _find() -> Daemon:
    """Return the container engine, which may be being started anew at the moment."""
    deadline = time.monotonic() + _RESTARTING
    while True:
        try:
            return find()
        except NoContainerEngine:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK)


def _run(
    run_dir: Path, record: EngineRecord, launch: Launch, container: Container, daemon: Daemon
) -> EngineRecord:
    """Make the container and start it; return the record of it, which is written. Raises GPUStackError or OSError."""
    import docker

    program = next(iter((*container.entrypoint, *container.arguments)), "of its own")

    def told(error: Any) -> GPUStackError:
        line = start_trouble(said(error), container.image, program=program, engine=daemon.name)
        return GPUStackError(line.line) if line.again else InvalidInput(line.line)

    with connected(daemon.url, timeout=120.0) as client:
        try:
            # What a worker that was killed left half made.
            for each in of_instance(client, run_dir, launch.instance_id):
                remove(client, each["Id"])
            made = client.create_container(**_described(client, run_dir, launch, container, daemon))["Id"]
            record = replace(record, container=made)
            write_record(run_dir, record)
            launch.lease.let_go()
            client.start(made)
            record = _known(run_dir, record, client.inspect_container(made))
        except docker.errors.APIError as error:
            raise told(error) from error
        write_record(run_dir, record)
        return record


def _described(
    client: APIClient, run_dir: Path, launch: Launch, container: Container, daemon: Daemon
) -> dict[str, Any]:
    """Return what the SDK makes a container of."""
    from docker.types import DeviceRequest as Request
    from docker.types import LogConfig, Mount, Ulimit

    plan = launch.plan
    scratch = str(launch.scratch)
    mounts = [
        Mount(target=target, source=source, type="bind", read_only=True)
        for target, source in container.reads.items()
    ]
    mounts.append(Mount(target=scratch, source=scratch, type="bind"))
    files = most_open_files(_OPEN_FILES)
    # GPUs and fast networks read and write memory that must stay where it is.
    locked = locked_memory()
    keeps = (
        LogConfig(type="k8s-file", config={"max-size": f"{_KEPT_LOG >> 20}mb"})
        if daemon.kind == "Podman"
        else LogConfig(type="json-file", config={"max-size": f"{_KEPT_LOG >> 20}m", "max-file": "2"})
    )
    memory = launch.memory_limit or None
    # Its first process is told what to end by; a root that is none outside needs no other user.
    user = None if daemon.rootless or not user_id() else f"{user_id()}:{group_id()}"
    env = {"HOME": scratch} if user else {}
    for layer in (plan.env, *launch.env):
        env |= layer
    env |= {
        INSTANCE_MARKER: str(launch.instance_id),
        RECORD_MARKER: str(record_path(run_dir, launch.instance_id)),
    }
    return {
        "image": container.image,
        "command": list(container.arguments),
        "entrypoint": list(container.entrypoint) or None,
        "name": _name(launch.instance_name),
        "environment": env,
        "labels": labels(run_dir, launch.instance_id, launch.instance_name),
        "working_dir": plan.cwd,
        "user": user,
        "stdin_open": False,
        "tty": False,
        "host_config": client.create_host_config(
            network_mode="host",
            mounts=mounts,
            devices=list(container.devices),
            device_requests=[
                Request(driver=each.driver, device_ids=list(each.ids), capabilities=[list(each.capabilities)])
                for each in container.requests
            ],
            shm_size=_SHARED_MEMORY,
            ulimits=[
                Ulimit(name="nofile", soft=files, hard=files),
                Ulimit(name="memlock", soft=locked, hard=locked),
                Ulimit(name="core", soft=0, hard=0),
            ],
            log_config=keeps,
            # The worker starts it again, and nobody else does.
            restart_policy={"Name": "no"},
            # Models lie wherever their owner has them, under whatever label.
            security_opt=["label=disable"],
            mem_limit=memory,
            memswap_limit=memory,
        ),
    }


def _name(instance_name: str) -> str:
    """Return a name for people: never the same twice, so that nothing that is left over stands in the way."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", instance_name).strip("-_.") or "engine"
    return f"gpustack-{safe[:80]}-{secrets.token_hex(3)}"


def _found(run_dir: Path, record: EngineRecord) -> dict[str, Any] | None:
    """Return the container of a record as the engine describes it; None when there is none that is ours."""
    import docker

    if not (url := engine_of(record, run_dir)):
        return None
    with connected(url) as client:
        number = record.container
        if not number:
            # The worker was killed before it could write that down.
            number = next((each["Id"] for each in of_instance(client, run_dir, record.instance_id)), "")
        if not number:
            return None
        try:
            found: dict[str, Any] = client.inspect_container(number)
        except docker.errors.NotFound:
            return None
        except docker.errors.APIError as error:
            raise NoContainerEngine(
                f"the container engine cannot tell of its container: {said(error)}"
            ) from error
        return found if is_ours(found["Config"].get("Labels"), run_dir, record.instance_id) else None


def _known(run_dir: Path, record: EngineRecord, found: dict[str, Any]) -> EngineRecord:
    """Return the record with what is known of a running container: its number, its process, its start."""
    number, state = str(found["Id"]), found["State"]
    record = replace(record, container=number)
    who = _process(run_dir, record, int(state.get("Pid") or 0))
    if who is None:
        started = max(0.0, moment() - _seconds_since(str(state.get("StartedAt", ""))))
        return replace(record, pid=0, started=started)
    return replace(record, pid=who.pid, started=who.started, pid_space=pid_space())


def _process(run_dir: Path, record: EngineRecord, pid: int) -> ProcessId | None:
    """Return the process of that number if it is of the record's container: elsewhere, numbers mean other processes."""
    if pid <= 0 or (who := identify(pid)) is None:
        return None
    mark = f"{RECORD_MARKER}=".encode()
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if found := next((each for each in variables if each.startswith(mark)), None):
            ours = os.fsencode(record_path(run_dir, record.instance_id))
            return who if found[len(mark) :] == ours else None
    # Of another user's process the environment cannot be read, and some programs write over it.
    with contextlib.suppress(OSError):
        if record.container and record.container in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"):
            return who
    return None


def _seconds_since(stamp: str) -> float:
    """Return the seconds since a time as the container engine writes it; 0 where it says none."""
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", stamp)
    if found is None or stamp.startswith("0001"):
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(f"{found[1]}+00:00")).total_seconds())


class _Following:
    """Writes the log of a container until it ends, and tells how it did; in a thread, since the SDK blocks."""

    def __init__(self, run_dir: Path, record: EngineRecord) -> None:
        self._run_dir = run_dir
        self._record = record
        self._stopped = threading.Event()
        self._stream: Any = None
        self._told = ""

    def stop(self) -> None:
        """Have it return soon, from any thread."""
        self._stopped.set()
        if (stream := self._stream) is not None:
            close(stream)

    def run(self) -> str:
        """Return how the engine ended; anything once it is stopped."""
        while not self._stopped.is_set():
            try:
                self._follow()
                found = _found(self._run_dir, self._record)
            except NoContainerEngine as error:
                who = self._record.process
                if who is not None and not is_running(who):
                    return f"ended with its container engine: {error}"
                # It goes on serving without.
                self._stopped.wait(_LOOK)
                continue
            if found is None:
                return "is gone: somebody removed its container"
            if not found["State"].get("Running"):
                return described_end(found)
            self._stopped.wait(0.1)
        return "is not watched any more"

    def _follow(self) -> None:
        """Write what the container says until it ends, or the connection does."""
        import docker
        import requests

        path, position = Path(self._record.log_path), position_path(self._run_dir, self._record.instance_id)
        with connected(self._record.daemon) as client, ContainerLog(path, position) as file:
            try:
                self._stream = client.logs(self._record.container, follow=True, **file.options())
                if not self._stopped.is_set():
                    file.take(self._stream)
            except docker.errors.NotFound:
                return
            except requests.exceptions.RequestException:
                raise  # which is an OSError as well
            except docker.errors.APIError as error:
                self._trouble(f"its log cannot be read: {said(error)}")
            except OSError as error:
                self._trouble(f"its log cannot be written: {system_line(error)}")
            finally:
                stream, self._stream = self._stream, None
                if stream is not None:
                    close(stream)

    def _trouble(self, line: str) -> None:
        """Tell of trouble with the log, once, and let some time pass: the engine serves on."""
        if line != self._told:
            self._told = line
            log.warning("instance %s: %s", self._record.instance_name, line)
        self._stopped.wait(_LATER)


def described_end(found: dict[str, Any]) -> str:
    """Return how a container ended, as the end of a sentence, from what the container engine says of it."""
    state = found["State"]
    after = spoken_seconds(_between(str(state.get("StartedAt", "")), str(state.get("FinishedAt", ""))))
    if state.get("OOMKilled"):
        limit = int(found.get("HostConfig", {}).get("Memory") or 0)
        had = f"its limit of {human_bytes(limit)}" if limit else "the machine's"
        return f"was killed after {after}: it took more memory than {had}"
    status = int(state.get("ExitCode") or 0)
    if 128 < status <= 128 + 64:  # as shells tell of signals
        status = 128 - status
    text = describe_exit(status, after)
    error = str(state.get("Error") or "")
    return f"{text} ({error})" if error else text


def _between(start: str, end: str) -> float:
    return max(0.0, _seconds_since(start) - _seconds_since(end)) if start and end else 0.0
