"""Running PostgreSQL's programs as children that do not outlive us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpustack.db.embedded import launch
from gpustack.db.embedded.account import Account

#: Whether the system ends a child with its parent by itself; elsewhere a pipe does it.
_DEATH_SIGNAL = sys.platform == "linux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended, and what it wrote."""

    status: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """What went wrong, in one line: the last line with an error, else the last line."""
        return reason_in(self.errors) or f"exit status {self.status}"


def reason_in(text: str) -> str:
    """Return the line of PostgreSQL's messages that tells why it failed, without its prefixes, or ""."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for mark in ("FATAL:", "PANIC:", "ERROR:", " error:"):
        if found := [line for line in lines if mark in line]:
            return found[-1].partition(mark)[2].strip()
    return lines[-1] if lines else ""


class Child:
    """One running program, in a session of its own so that Ctrl-C in our terminal does not reach it.

    :meth:`spawn` must be called in the thread that lives as long as the process: the death signal follows it.
    """

    def __init__(self, process: asyncio.subprocess.Process, watched: int | None) -> None:
        self.process = process
        self._watched = watched

    @classmethod
    async def spawn(cls, argv: list[str], account: Account | None, **pipes: Any) -> Child:
        """Start ``argv`` as ``account``; ``pipes`` are stdin, stdout and stderr as for subprocesses."""
        theirs, ours = (None, None) if _DEATH_SIGNAL else os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command(argv, account, watch=theirs),
                env=environment(),
                cwd="/",
                start_new_session=True,
                pass_fds=() if theirs is None else (theirs,),
                **pipes,
            )
        except BaseException:
            if ours is not None:
                os.close(ours)
            raise
        finally:
            if theirs is not None:
                os.close(theirs)
        return cls(process, ours)

    async def wait(self) -> int:
        """Return the exit status; negative for the number of the signal that ended it."""
        status = await self.process.wait()
        if self._watched is not None:
            watched, self._watched = self._watched, None
            with contextlib.suppress(OSError):
                os.write(watched, launch.ALL_DONE)
            os.close(watched)
        return status

    def signal(self, number: int) -> None:
        """Send a signal; without effect when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def command(argv: list[str], account: Account | None, *, watch: int | None = None) -> list[str]:
    """Return the command line that runs ``argv`` as ``account`` for as long as this process lives."""
    user = "-" if account is None else f"{account.uid}:{account.gid}"
    pipe = "-" if watch is None else str(watch)
    return [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), user, pipe, *argv]


def environment() -> dict[str, str]:
    """Return our environment without what would change PostgreSQL's behaviour or the language of its messages."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


async def run(argv: list[str], account: Account | None, *, feed: str = "") -> Finished:
    """Run a program to its end with ``feed`` as its input; when cancelled, it is ended first."""
    child = await Child.spawn(
        argv, account, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, errors = await child.process.communicate(feed.encode())
    except BaseException:
        child.signal(signal.SIGKILL)
        await child.wait()
        raise
    status = await child.wait()
    return Finished(
        status=status, output=output.decode(errors="replace"), errors=errors.decode(errors="replace")
    )


async def single_user(
    bin_dir: Path, data: Path, account: Account | None, sql: str, *options: str, database: str = "template1"
) -> str:
    """Run one SQL statement (on one line) on a cluster that nobody serves; return "" or what went wrong."""
    argv = [str(bin_dir / "postgres"), "--single", *options, "-D", str(data), database]
    done = await run(argv, account, feed=f"{sql}\n")
    failed = done.status != 0 or any(mark in done.errors for mark in ("ERROR:", "FATAL:", "PANIC:"))
    return done.reason if failed else ""
