"""What is written down about doors, which outlive their supervisor: the next one finds, adopts or ends them by it.

A door writes its own record, ``<data-dir>/run/doors/<pid>.json``, and listens for its supervisor beside it. Gateways do
the same in a folder of theirs, but take no orders: a signal retires them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gpustack import __version__
from gpustack.kit.paths import place, write_atomic
from gpustack.kit.process import ProcessId, identify, is_running, pid_space

#: The folders of records, by what they are of.
DOORS, GATEWAYS = "doors", "gateways"
_LOOK = 0.02
#: Seconds that killing for good may take.
_FOR_GOOD = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorRecord:
    """One door."""

    pid: int
    #: When the process started, as :class:`ProcessId` has it.
    started: float
    pid_space: str
    version: str
    #: It takes no new connections and ends when its streams have.
    retired: bool = False
    #: The data directory that it serves, as :func:`gpustack.kit.paths.place` names it: a copy tells of nothing here.
    place: str = ""

    @property
    def process(self) -> ProcessId:
        """Its process."""
        return ProcessId(pid=self.pid, started=self.started)

    @property
    def running(self) -> bool:
        """Whether that very process runs here."""
        return self.pid_space == pid_space() and is_running(self.process)


def socket_path(run_dir: Path, pid: int, kind: str = DOORS) -> Path:
    """Return where the door with that process number listens for its supervisor."""
    return run_dir / kind / f"{pid}.sock"


def write_own(run_dir: Path, *, retired: bool = False, kind: str = DOORS) -> None:
    """Write the record of this process."""
    me = identify(os.getpid())
    assert me is not None
    record = DoorRecord(
        pid=me.pid,
        started=me.started,
        pid_space=pid_space(),
        version=__version__,
        retired=retired,
        place=place(run_dir.parent),
    )
    write_atomic(_path(run_dir, me.pid, kind), json.dumps(asdict(record)), mode=0o600)


def remove(run_dir: Path, pid: int, kind: str = DOORS) -> None:
    """Remove what lies there of a door that has ended; there need not be anything."""
    _unlink(_path(run_dir, pid, kind))
    _unlink(socket_path(run_dir, pid, kind))


def running_doors(run_dir: Path, kind: str = DOORS) -> list[DoorRecord]:
    """Return the doors that run, newest first; what others left behind, or was copied with the data, is removed."""
    found: list[DoorRecord] = []
    for path in (run_dir / kind).glob("*.json"):
        record = _read(path)
        if record is not None and record.running and record.place in ("", place(run_dir.parent)):
            found.append(record)
        else:
            _unlink(path)
            _unlink(path.with_suffix(".sock"))
    return sorted(found, key=lambda record: record.started, reverse=True)


def end_doors(run_dir: Path, *, grace: float = 2.0, kind: str = DOORS) -> int:
    """End every door of this data directory and return how many there were. Blocks until they are gone."""
    doors = running_doors(run_dir, kind)
    end_processes([record.process for record in doors], grace=grace)
    for record in doors:
        if not is_running(record.process):
            remove(run_dir, record.pid, kind)
    return len(doors)


def end_processes(found: Sequence[ProcessId], *, grace: float) -> None:
    """End processes: politely, and after ``grace`` seconds for good. Blocks until they are gone."""
    for number, seconds in ((signal.SIGTERM, grace), (getattr(signal, "SIGKILL", signal.SIGTERM), _FOR_GOOD)):
        for who in (alive := [each for each in found if is_running(each)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(who.pid, number)
        deadline = time.monotonic() + seconds
        while any(is_running(each) for each in alive) and time.monotonic() < deadline:
            time.sleep(_LOOK)


def _unlink(path: Path) -> None:
    """Remove a file; one that stays, as on a disk that turned read-only, means nothing without its process."""
    with contextlib.suppress(OSError):
        path.unlink()


def _path(run_dir: Path, pid: int, kind: str) -> Path:
    return run_dir / kind / f"{pid}.json"


def _read(path: Path) -> DoorRecord | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return DoorRecord(
            pid=int(values["pid"]),
            started=float(values["started"]),
            pid_space=str(values["pid_space"]),
            version=str(values["version"]),
            retired=bool(values.get("retired")),
            place=str(values.get("place", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
