"""What is written down about each engine, so that whoever comes after a crash finds and adopts or ends it.

A record is written before the process starts and completed right after. A crash in between leaves one without
a process number: then the process is found by the marker in its environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from gpustack.kit.paths import place, write_atomic
from gpustack.kit.process import ProcessId, identify, is_running
from gpustack.worker.runners.environment import INSTANCE_MARKER, RECORD_MARKER

log = logging.getLogger(__name__)

#: How an engine is run: see :attr:`EngineRecord.runner`.
PROCESS, CONTAINER = "process", "container"
#: The file below the folder of what runs that names the container engines that were ever used here.
CONTAINERS_USED = "container-engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """One engine. ``pid`` 0: about to be started, or in a container whose processes cannot be seen from here."""

    instance_id: int
    instance_name: str
    port: int
    log_path: str
    #: Digest of the command line.
    argv_digest: str
    #: How it is probed.
    ready_path: str = "/health"
    ready_timeout: float = 2.0
    #: What takes connections once it is ready, where it answers no requests; None with an empty path: it is at once.
    ready_address: tuple[str, int] | None = None
    #: Of a member of an instance over several workers: which attempt to start them it belongs to.
    attempt: int = 0
    pid: int = 0
    #: When the process started, as :func:`gpustack.kit.process.moment` counts.
    started: float = 0.0
    #: Where ``pid`` means this process, as :func:`gpustack.kit.process.pid_space` names it.
    pid_space: str = ""
    #: The data directory that it lies in, as :func:`gpustack.kit.paths.place` names it: a copy tells of nothing here.
    place: str = ""
    #: As a process of the worker's, or as a container.
    runner: str = PROCESS
    #: The container, once it is made, and the address of the container engine that has it.
    container: str = ""
    daemon: str = ""
    #: The control group that the process and all that it starts lie in; empty where none could be made.
    cgroup: str = ""
    #: A folder outside the data directory that is removed with it; empty for none.
    folder: str = ""

    @property
    def process(self) -> ProcessId | None:
        """Its process, when it is known."""
        return ProcessId(pid=self.pid, started=self.started) if self.pid > 0 else None


def digest(argv: Sequence[str]) -> str:
    """Return the digest of a command line."""
    return hashlib.sha256("\0".join(argv).encode("utf-8", "surrogateescape")).hexdigest()


def records_dir(run_dir: Path) -> Path:
    """Return the folder of the records below ``run_dir``."""
    return run_dir / "instances"


def memories_dir(run_dir: Path) -> Path:
    """Return the folder, below ``run_dir``, of what outlives the engines of an instance."""
    return run_dir / "memories"


def record_path(run_dir: Path, instance_id: int) -> Path:
    """Return the file that holds the record of one instance."""
    return records_dir(run_dir) / f"{instance_id}.json"


def write_record(run_dir: Path, record: EngineRecord) -> None:
    """Write the record; a reader sees the old one or the new one."""
    records_dir(run_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    document = asdict(record) | {"place": place(run_dir.parent)}
    write_atomic(record_path(run_dir, record.instance_id), json.dumps(document), mode=0o600)


def remove_record(run_dir: Path, instance_id: int) -> None:
    """Remove the record; there need not be one."""
    record_path(run_dir, instance_id).unlink(missing_ok=True)


def read_record(path: Path) -> EngineRecord | None:
    """Return the record in ``path``; None when there is none, it cannot be understood, or it is a copy of another's.

    A copied record tells of an engine that belongs to the data directory that it was copied from.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: field.type for field in fields(EngineRecord)}
        record = EngineRecord(**{name: value for name, value in values.items() if name in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not a record of an engine: %s", path, error)
        return None
    whole = all(isinstance(each, int) for each in (record.instance_id, record.port, record.pid))
    texts = all(
        isinstance(each, str)
        for each in (record.runner, record.container, record.daemon, record.cgroup, record.folder)
    )
    if not whole or not texts or not isinstance(record.started, int | float):
        return None
    return record if record.place in ("", place(path.parent.parent.parent)) else None


def read_records(run_dir: Path) -> list[EngineRecord]:
    """Return all records, by instance."""
    found = [record for path in records_dir(run_dir).glob("*.json") if (record := read_record(path))]
    return sorted(found, key=lambda record: record.instance_id)


def unrecorded(run_dir: Path) -> list[EngineRecord]:
    """Return a record for each engine that runs here by its environment while none is written down for it."""
    folder = records_dir(run_dir)
    found = set[int]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            path = Path(process.environ().get(RECORD_MARKER, ""))
            if path.parent == folder and path.stem.isdecimal() and read_record(path) is None:
                found.add(int(path.stem))
    return [
        EngineRecord(instance_id=each, instance_name=f"instance {each}", port=0, log_path="", argv_digest="")
        for each in sorted(found)
    ]


def find_process(run_dir: Path, record: EngineRecord) -> ProcessId | None:
    """Return the running process of ``record``, or None when it has ended or never started."""
    if (known := record.process) is not None:
        return known if is_running(known) and not is_stranger(known.pid, record.instance_id) else None
    path = str(record_path(run_dir, record.instance_id))
    # The leader of the session is the engine; what it started inherits the marker.
    found = sorted(marked(path), key=lambda process: process.create_time())
    return identify(found[0].pid) if found else None


def is_stranger(pid: int, instance_id: int) -> bool:
    """Tell whether its environment says that a process is not of this instance, whatever number it bears.

    Programs that show a title of their own overwrite their environment; then it says nothing, and nor does one that
    we may not read. All that we start have a search path.
    """
    try:
        # For a moment after its start a program has none.
        if not (env := psutil.Process(pid).environ()):
            time.sleep(0.01)
            env = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return False
    return "PATH" in env and env.get(INSTANCE_MARKER) != str(instance_id)


def marked(record: str) -> Iterator[psutil.Process]:
    """Yield the processes whose environment says that they belong to the record of this path."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(RECORD_MARKER) == record:
                yield process
