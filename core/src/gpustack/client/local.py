"""Finds the GPUStack that runs on this machine, by its data directory. Needs no HTTP library."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpustack.kit.errors import Forbidden, GPUStackError, NotFound, SettingsError
from gpustack.kit.local_sockets import Channel, connect_local
from gpustack.kit.locks import FileLock
from gpustack.kit.net import LOOPBACK
from gpustack.kit.paths import place
from gpustack.kit.process import ProcessId, command_line, identify, is_running

#: Seconds until a supervisor that is being replaced is asked again.
_AGAIN = 0.2


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
    #: When the supervisor started, as :func:`gpustack.kit.process.moment` counts.
    started: float
    url: str
    version: str
    data_dir: Path
    log_dir: Path
    #: Where its worker has engines, and the pipx it installs them with; empty as in the settings.
    bin_dir: Path | None = None
    pipx_path: str = ""
    #: The container image of this GPUStack.
    image: str = ""
    #: Everything was ready once.
    ready: bool = False
    #: Where the server is, when this machine is a worker of another one.
    server_url: str = ""
    #: The ports that are listened on, by what for: ``http``, ``https``, ``api``, ``door``, ``worker``.
    ports: dict[str, int] = field(default_factory=dict)
    children: dict[str, ChildState] = field(default_factory=dict)
    #: What is wrong with the machine, a line each.
    warnings: tuple[str, ...] = ()

    @property
    def process(self) -> ProcessId:
        """The supervisor itself."""
        return ProcessId(pid=self.pid, started=self.started)

    @property
    def local_url(self) -> str:
        """The server's URL from this very machine: ``url`` may be an address that others see, behind a NAT."""
        return f"http://{LOOPBACK}:{self.ports.get('http') or urlsplit(self.url).port or 80}"

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
        document = json.loads(text)
        if document.get("place", "") not in ("", place(data_dir)):
            return None  # copied with the data of another one
        return _state(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if not _in_use(data_dir):
            return None  # half of a file, of one that is gone
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


def restart(data_dir: Path, *, say: Callable[[str], None], patience: float = 120.0) -> str:
    """Have the GPUStack of ``data_dir`` restarted; return its version once it is ready again.

    One that somebody else has ordered just before serves as well: ``say`` gets a line, and its end is waited for.

    Raises NothingRuns, SettingsError when the settings are wrong now (then nothing was touched), or GPUStackError with
    the line that says why it did not come back. ``patience`` is in seconds.
    """
    state = running_state(data_dir)
    try:
        answer = _ordered(data_dir, state, say=say, patience=patience)
    except PermissionError as error:
        raise Forbidden(f"that GPUStack belongs to another user; restart it as that user: {error}") from error
    except TimeoutError as error:
        raise GPUStackError(
            f"GPUStack is not ready again after {patience:.0f} s; `gpustack status` and the logs in {state.log_dir} "
            "say more"
        ) from error
    except OSError as error:
        raise GPUStackError(f"GPUStack ended while it restarted; its logs are in {state.log_dir}") from error
    if "error" in answer:
        raise (SettingsError if answer.get("settings_are_wrong") else GPUStackError)(str(answer["error"]))
    return str(answer["version"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What came of reading the settings again: names of options that changed, and lines for people."""

    applied: list[str]
    needs_restart: list[str]
    warnings: list[str]
    #: Who has not confirmed that what is applied is.
    troubles: list[str]


def reload(data_dir: Path, *, patience: float = 60.0) -> Reloaded:
    """Have the GPUStack of ``data_dir`` read its settings again, and apply what takes no restart.

    Raises NothingRuns, SettingsError when they are wrong now, or GPUStackError; then nothing was applied. ``patience`` is
    in seconds.
    """
    state = running_state(data_dir)
    try:
        with Channel(connect_local(run_dir(data_dir) / "control.sock", timeout=patience)) as channel:
            channel.send({"do": "reload"})
            found = channel.receive().content
    except PermissionError as error:
        raise Forbidden(f"that GPUStack belongs to another user; reload it as that user: {error}") from error
    except TimeoutError as error:
        raise GPUStackError(
            f"the settings were not read within {patience:.0f} s; the logs in {state.log_dir} say more"
        ) from error
    except OSError as error:
        raise GPUStackError("GPUStack takes no orders now; is it restarting? Try again") from error
    if "error" in found:
        raise (SettingsError if found.get("settings_are_wrong") else GPUStackError)(str(found["error"]))
    return Reloaded(
        **{name: list(found[name]) for name in ("applied", "needs_restart", "warnings", "troubles")}
    )


def _ordered(
    data_dir: Path, state: RunState, *, say: Callable[[str], None], patience: float
) -> dict[str, Any]:
    """Order a restart and return the answer. Raises OSError when it ends without one, TimeoutError after ``patience``.

    A program that is replaced takes connections that it has not answered with it: their restart is another's.
    """
    deadline = time.monotonic() + patience
    order = "restart"
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            with Channel(connect_local(run_dir(data_dir) / "control.sock", timeout=left)) as channel:
                channel.send({"do": order})
                return channel.receive().content
        except (PermissionError, TimeoutError):
            raise
        except OSError:
            if not state.running or not state.ready:
                raise
            if time.monotonic() >= deadline:
                raise TimeoutError from None
        if order == "restart":
            say("another restart is under way; it is waited for")
            order = "await"
        time.sleep(_AGAIN)


def holder(data_dir: Path) -> ProcessId | None:
    """Return the supervisor that has ``data_dir``, by its lock, where nothing else tells of it any more."""
    pid = FileLock(data_dir / "gpustack.lock").holder()
    who = None if pid is None else identify(pid)
    if who is None:
        return None
    command = command_line(who.pid)
    with contextlib.suppress(OSError):
        if "gpustack.app.supervisor" in command and Path(command[-1]).samefile(data_dir):
            return who
    return None


def cli_token(data_dir: Path) -> str:
    """Return the credential of this machine's command line. Raises NothingRuns, or Forbidden."""
    token = _read(run_dir(data_dir) / "cli_token")
    if token is None:
        raise NothingRuns(
            f"the GPUStack of data directory {data_dir} is just starting or stopping; try again"
        )
    return token.strip()


def _in_use(data_dir: Path) -> bool:
    """Tell whether the process runs that last took the data directory."""
    holder = FileLock(data_dir / "gpustack.lock").holder()
    return holder is not None and identify(holder) is not None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
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
        bin_dir=Path(document["bin_dir"]) if document.get("bin_dir") else None,
        pipx_path=str(document.get("pipx_path", "")),
        image=str(document.get("image", "")),
        ready=bool(document.get("ready")),
        server_url=str(document.get("server_url", "")),
        ports={str(name): int(port) for name, port in document.get("ports", {}).items()},
        warnings=tuple(str(line) for line in document.get("warnings", ())),
        children={
            str(name): ChildState(
                pid=child.get("pid"),
                state=str(child.get("state", "")),
                restarts=int(child.get("restarts", 0)),
            )
            for name, child in document.get("children", {}).items()
        },
    )
