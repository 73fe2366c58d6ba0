"""``gpustack stop``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpustack.cli.output import emit_json, note, on_terminal
from gpustack.cli.target import Target, data_dir_option, json_option
from gpustack.kit.errors import Conflict, Forbidden, GPUStackError
from gpustack.kit.text import plural

if TYPE_CHECKING:
    from gpustack.client.local import RunState
    from gpustack.kit.process import ProcessId

#: Seconds that an orderly end may take; it takes ten at most.
PATIENCE = 15.0
_POLL = 0.1
#: Seconds for the children of a supervisor that was killed; the system asks them to end at that moment. A server that has
#: requests in flight and no database takes the longest.
_ORPHANS = 12.0


@click.command("stop")
@data_dir_option
@json_option
def command(data_dir: str, as_json: bool) -> None:
    """Stop the GPUStack of this machine, engines included.

    Waits until everything has ended, and ends by force what has not after 15 seconds. The exit status is 0 also
    when nothing was running.
    """
    from gpustack.client.local import read_state

    directory = Target(data_dir=data_dir).directory
    state = read_state(directory)
    if state is not None and not state.running:
        _await_orphans(state)
    ours = _running(directory, state)
    running = bool(ours)
    forced = _stop(ours, quiet=as_json) if ours else 0
    left, others = _end_what_is_left(directory)
    if as_json:
        emit_json({"was_running": running, "forced": forced, "engines_left_behind": left})
        return
    if running:
        click.echo("GPUStack has stopped.")
    elif not left and not others:
        click.echo(f"Nothing runs with data directory {directory}.")
    if forced:
        note(f"{plural(forced, 'process')} did not end in {PATIENCE:.0f} s and had to be killed.")
    if left:
        note(f"Ended {plural(left, 'engine')} that an earlier crash had left behind.")
    elif others and not running:
        click.echo("Ended what an earlier crash had left behind.")


def _running(directory: Path, state: RunState | None) -> list[ProcessId]:
    """Return the supervisor, first, and its children; nothing when none runs.

    Noted before the end begins: afterwards nobody could tell whose they were. Where what is written down was removed,
    the lock tells.
    """
    from gpustack.cli.processes import descendants, identities
    from gpustack.client.local import holder

    if state is not None and state.running:
        return identities(state)
    if (head := holder(directory)) is None:
        return []
    return [head, *descendants(head)]


def _stop(ours: list[ProcessId], *, quiet: bool) -> int:
    """Ask the supervisor, the first of ``ours``, to end, and see to it; return how many had to be killed."""
    pid = ours[0].pid
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended by itself meanwhile
    except PermissionError as error:
        raise Forbidden(
            f"process {pid} belongs to another user; stop it as that user or with sudo"
        ) from error
    left = _wait(ours, quiet=quiet)
    if left:
        _kill(left)
    return len(left)


def _wait(ours: list[ProcessId], *, quiet: bool) -> list[ProcessId]:
    """Wait until they are gone, telling a person how long it has taken; return those that are not."""
    from gpustack.cli.processes import still_running

    show = on_terminal() and not quiet
    began = time.monotonic()
    while (left := still_running(ours)) and (waited := time.monotonic() - began) < PATIENCE:
        if show:
            sys.stdout.write(f"\rStopping… {waited:.0f} s")
            sys.stdout.flush()
        time.sleep(_POLL)
    if show:
        sys.stdout.write("\r\x1b[K")
    return left


def _await_orphans(state: RunState) -> None:
    """Let the children of a killed supervisor end, as the system has told them to.

    They are not killed: after so long their numbers may be somebody else's.
    """
    from gpustack.cli.processes import still_running
    from gpustack.kit.process import identify

    # Door and gateways outlive their supervisor, and the database serves whoever is connected: they are ended later.
    later = ("door", "postgres", "gateway")
    pids = [
        child.pid
        for name, child in state.children.items()
        if child.pid is not None and not name.startswith(later)
    ]
    found = [who for pid in pids if (who := identify(pid)) is not None and who.started >= state.started - 1]
    deadline = time.monotonic() + _ORPHANS
    while still_running(found) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _kill(left: list[ProcessId]) -> None:
    from gpustack.cli.processes import still_running
    from gpustack.kit.process import end_tree

    for who in left:
        with contextlib.suppress(ProcessLookupError):
            end_tree(who.pid, grace=0)
    if stubborn := still_running(left):
        raise GPUStackError(
            f"process {', '.join(str(who.pid) for who in stubborn)} could not be ended; it may hang in the kernel"
        )


def _end_what_is_left(directory: Path) -> tuple[int, int]:
    """End engines, doors, installs and a database that nobody watches any more; return how many engines and others ran.

    Raises Conflict when a GPUStack is just starting there, which may be about to adopt them.
    """
    from gpustack.kit.locks import FileLock

    lock = FileLock(directory / "gpustack.lock")
    if not lock.path.exists():
        return 0, 0
    if not lock.acquire():
        raise Conflict(f"a GPUStack is just starting or stopping there (process {lock.holder()}); try again")
    try:
        return _end_recorded(directory)
    finally:
        lock.release()


def _end_recorded(directory: Path) -> tuple[int, int]:
    from gpustack.cli.processes import end_doors, engines
    from gpustack.client.local import run_dir
    from gpustack.db.embedded import leftovers
    from gpustack.worker.runners.ending import end_recorded

    left = len(list(engines(directory)))
    # The door first: it lets requests end while their engines still answer.
    doors = end_doors(directory)
    end_recorded(run_dir(directory))
    others = doors + _end_installs(directory / "pipx")
    asyncio.run(leftovers.end(directory / "postgresql"))
    return left, others


def _end_installs(home: Path) -> int:
    if not any(home.glob(".*.busy")):
        return 0
    from gpustack.worker.artifacts.folders import end_abandoned

    return end_abandoned(home)
