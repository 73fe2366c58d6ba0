"""Finds the GPUStack that runs on this machine, by its data directory. Needs no HTTP library."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpustack.kit.errors import Forbidden, GPUStackError, NotFound
from gpustack.kit.net import LOOPBACK
from gpustack.kit.process import ProcessId, is_running


class NothingRuns(NotFound):
    """No GPUStack runs where it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildState:
    """One process of the supervisor's. ``pid`` is None between two lives of it."""

    pid: int | None
    state: str
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a supervisor wrote down about itself."""

    pid: int
    #: When the supervisor started, in seconds since the epoch.
    started: float
    url: str
    version: str
    data_dir: Path
    log_dir: Path
    #: Everything was ready once.
    ready: bool = False
    children: dict[str, ChildState] = field(default_factory=dict)

    @property
    def process(self) -> ProcessId:
        """The supervisor itself."""
        return ProcessId(pid=self.pid, started=self.started)

    @property
    def local_url(self) -> str:
        """The server's URL from this very machine: ``url`` may be an address that others see, behind a NAT."""
        return f"http://{LOOPBACK}:{urlsplit(self.url).port or 80}"

    @property
    def running(self) -> bool:
        """Whether that supervisor still runs; a file left behind by a killed one says nothing."""
        return is_running(self.process)


def run_dir(data_dir: Path) -> Path:
    """Return the folder below ``data_dir`` that tells what runs."""
    return data_dir / "run"


def read_state(data_dir: Path) -> RunState | None:
    """Return what the last supervisor of ``data_dir`` wrote, running or not; None when there is nothing.

    Raises Forbidden when it belongs to another user.
    """
    text = _read(run_dir(data_dir) / "supervisor.json")
    if text is None:
        return None
    try:
        return _state(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GPUStackError(
            f"{run_dir(data_dir) / 'supervisor.json'} cannot be understood; does another version run there?"
        ) from error


def running_state(data_dir: Path) -> RunState:
    """Return the state of the GPUStack that runs with ``data_dir``. Raises NothingRuns, or Forbidden."""
    state = read_state(data_dir)
    if state is None or not state.running:
        raise NothingRuns(
            f"no GPUStack runs with data directory {data_dir}; start it with `gpustack start`, name another "
            "--data-dir, or use `gpustack login URL` for one on another machine"
        )
    return state


def cli_token(data_dir: Path) -> str:
    """Return the credential of this machine's command line. Raises NothingRuns, or Forbidden."""
    token = _read(run_dir(data_dir) / "cli_token")
    if token is None:
        raise NothingRuns(
            f"the GPUStack of data directory {data_dir} is just starting or stopping; try again"
        )
    return token.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Forbidden(
            f"{path} cannot be read ({error.strerror}): that GPUStack belongs to another user; sign in with "
            "`gpustack login URL`"
        ) from error


def _state(document: dict[str, Any]) -> RunState:
    return RunState(
        pid=int(document["pid"]),
        started=float(document["started"]),
        url=str(document["url"]),
        version=str(document.get("version", "")),
        data_dir=Path(document["data_dir"]),
        log_dir=Path(document["log_dir"]),
        ready=bool(document.get("ready")),
        children={
            str(name): ChildState(
                pid=child.get("pid"),
                state=str(child.get("state", "")),
                restarts=int(child.get("restarts", 0)),
            )
            for name, child in document.get("children", {}).items()
        },
    )
