"""The processes of the GPUStack on this machine, as ``status`` shows and ``stop`` ends them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from gpustack.client.local import RunState, run_dir
from gpustack.kit.process import ProcessId, identify, is_running


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One process. ``pid`` None: it is between two lives. Memory is the resident one of its whole tree, in bytes."""

    name: str
    pid: int | None
    state: str
    restarts: int = 0
    uptime: float | None = None
    memory: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        document = asdict(self)
        del document["name"]
        return document


def supervisor(state: RunState) -> Seen:
    """Return the supervisor's own process."""
    return Seen(name="supervisor", pid=state.pid, state="running", **_measured(state.pid, whole=False))


def children(state: RunState) -> Iterator[Seen]:
    """Yield the supervisor's children."""
    for name, child in state.children.items():
        # Engines are below the worker by parentage and counted by themselves.
        measured = _measured(child.pid, whole=name != "worker")
        yield Seen(name=name, pid=child.pid, state=child.state, restarts=child.restarts, **measured)


def engines(data_dir: Path) -> Iterator[Seen]:
    """Yield the engines that run here, by what the worker wrote down or by their environment."""
    from gpustack.worker.runners.records import find_process, read_records, unrecorded

    for record in [*read_records(run_dir(data_dir)), *unrecorded(run_dir(data_dir))]:
        if (who := find_process(run_dir(data_dir), record)) is not None:
            yield Seen(name=record.instance_name, pid=who.pid, state="running", **_measured(who.pid))


def doors(data_dir: Path) -> int:
    """Return how many doors run here."""
    from gpustack.app.doors import running_doors

    return len(running_doors(run_dir(data_dir)))


def gateways(data_dir: Path) -> int:
    """Return how many gateway processes run here."""
    from gpustack.app.doors import GATEWAYS, running_doors

    return len(running_doors(run_dir(data_dir), GATEWAYS))


def end_doors(data_dir: Path) -> int:
    """End the doors and gateways that a killed supervisor has left, and return how many there were."""
    from gpustack.app.doors import DOORS, GATEWAYS
    from gpustack.app.doors import end_doors as end

    for name in ("control.sock", "gateway.sock"):
        (run_dir(data_dir) / name).unlink(missing_ok=True)
    return sum(end(run_dir(data_dir), kind=kind) for kind in (GATEWAYS, DOORS))


def using(data_dir: Path, program: Path) -> list[str]:
    """Return the names of the engines that run ``program``, a link into its environment."""
    from gpustack.worker.runners.records import find_process, read_records

    found = []
    for record in read_records(run_dir(data_dir)):
        who = find_process(run_dir(data_dir), record)
        if who is not None and _runs(who.pid, program):
            found.append(record.instance_name)
    return found


def _environment(program: Path) -> Path:
    """Return the folder that belongs to ``program``: its Python environment, or what its archive held."""
    folder = program.resolve().parent
    return folder.parent if (folder.parent / "pyvenv.cfg").exists() else folder


def _runs(pid: int, program: Path) -> bool:
    """Tell whether a process, or one below it, was started as ``program`` or from the environment it lies in."""
    # What is no link leads into no environment: it is not installed, or was put there by hand.
    inside = (f"{_environment(program)}/",) if program.is_symlink() else ()
    with contextlib.suppress(psutil.Error):
        engine = psutil.Process(pid)
        for process in [engine, *engine.children(recursive=True)]:
            if any(word == str(program) or word.startswith(inside) for word in process.cmdline()):
                return True
    return False


def identities(state: RunState) -> list[ProcessId]:
    """Return who the supervisor and its children are now, to look for them later."""
    pids = [child.pid for child in state.children.values() if child.pid is not None]
    return [state.process, *(who for pid in pids if (who := identify(pid)) is not None)]


def descendants(head: ProcessId) -> list[ProcessId]:
    """Return the children of a supervisor that nothing is written down of."""
    with contextlib.suppress(psutil.Error):
        pids = [child.pid for child in psutil.Process(head.pid).children()]
        return [who for pid in pids if (who := identify(pid)) is not None]
    return []


def still_running(processes: list[ProcessId]) -> list[ProcessId]:
    """Return those of ``processes`` that run."""
    return [who for who in processes if is_running(who)]


def _memory(process: psutil.Process) -> int:
    """Return the bytes it takes, with its part of what it shares where the system tells (Linux)."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)


def _measured(pid: int | None, *, whole: bool = True) -> dict[str, Any]:
    """Return ``uptime`` and ``memory``, None where they cannot be read."""
    try:
        process = psutil.Process(pid) if pid is not None else None
        if process is None:
            return {}
        memory = _memory(process)
        if whole:
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    memory += _memory(child)
        return {"uptime": round(max(0.0, time.time() - process.create_time()), 1), "memory": memory}
    except psutil.Error:
        return {}
