"""Processes: who they are, ending whole trees, and ending with one's parent.

A process is known by its number *and* its start time, since numbers are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

#: Keyword arguments for subprocess calls that put the child in a session of its own, so that signals meant
#: for us (Ctrl-C in a terminal) do not reach it, and its whole tree can be found later.
OWN_SESSION: dict[str, Any] = (
    {"creationflags": 0x00000200} if sys.platform == "win32" else {"start_new_session": True}
)

#: Asks a process that outlives its supervisor to take no more work, and to end when what it has is done.
RETIRE: signal.Signals = getattr(signal, "SIGUSR1", signal.SIGTERM)

_PR_SET_PDEATHSIG = 1
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
#: Bytes from which on a buffer is one that is given back to the system.
_LARGE = 1 << 20
#: Seconds between two looks at processes that are about to end.
_LOOK = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process for good: its number with the time it started, in seconds as :func:`moment` counts them."""

    pid: int
    started: float


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the running process ``pid``, or None when there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessId(pid=pid, started=started_at(process))
    except (psutil.Error, OSError, IndexError):
        return None


def command_line(pid: int) -> list[str]:
    """Return the words that a process was started with; none where it is gone or not ours to read."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []


def is_running(who: ProcessId) -> bool:
    """Tell whether that very process still runs; a zombie does not."""
    now = identify(who.pid)
    return now is not None and abs(now.started - who.started) < 0.5


def moment() -> float:
    """Return the present time in seconds since a zero that only this boot of the machine has.

    Setting the clock does not change it, and no time of another boot comes near it. Where the system does not
    tell its boots apart (not Linux) it is the time since the epoch.
    """
    zero = _zero_of_boot()
    return time.time() if zero is None else zero + time.clock_gettime(time.CLOCK_BOOTTIME)


def started_at(process: psutil.Process) -> float:
    """Return when ``process`` started, as :func:`moment` counts. Raises psutil.Error or OSError when it is gone."""
    if (zero := _zero_of_boot()) is None:
        return float(process.create_time())
    return zero + int(_stat(process.pid)[19]) / os.sysconf("SC_CLK_TCK")


def age(who: ProcessId) -> float:
    """Return the seconds since that process started."""
    return max(0.0, moment() - who.started)


@functools.cache
def _zero_of_boot() -> float | None:
    """Return a number of seconds that stands for this boot alone; None where nothing tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Chance keeps boots many years apart; a float still has the milliseconds of so large a number.
        return float(int(boot[:8], 16) * 512) if _stat(os.getpid()) else None
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> list[str]:
    """Return the values of ``/proc/PID/stat`` behind the name, which stands in parentheses and may hold anything."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def forked_by_us(pid: int) -> int | None:
    """Fetch the exit status of a child that has ended, as subprocess gives it; None when it is none of ours.

    A program that replaced ours is the parent of what ours had started, without knowing of it.
    """
    if sys.platform == "win32":
        return None
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            return os.waitstatus_to_exitcode(status)
    return None


@functools.cache
def pid_space() -> str:
    """Return a name for that within which process numbers mean what they mean to us; "" where nothing tells.

    It is another one after a restart of the machine or of the container: there the first process is another,
    even when the system numbers the container's namespace as before.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        first = _stat(1)[19]  # when it started
    except (OSError, IndexError):
        return ""
    return f"{boot}/{namespace}/{first}"


def end_with_parent(parent: int | None = None) -> None:
    """Ask the system to end this process when its parent dies (Linux; elsewhere the parent's pipe tells).

    Call it after any change of user, which clears the setting. ``parent`` is the expected parent: when it is
    gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def give_large_buffers_back() -> None:
    """Have the system get back at once what buffers of :data:`_LARGE` bytes and more took, where glibc allocates them.

    Otherwise it keeps some dozen megabytes for the next ones, once there was a large one, for as long as the process lives.
    Threads, which take turns anyway, have one heap together, and do not keep some for each.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # others than glibc have none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE)
            mallopt(_M_ARENA_MAX, 1)


def tree(pid: int) -> list[psutil.Process]:
    """Return the process ``pid``, its descendants, and everything in the session it leads.

    The session finds grandchildren whose own parent has died, such as an engine's core processes.
    """
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        found[pid] = root
        for child in root.children(recursive=True):
            found[child.pid] = child
    if sys.platform != "win32":
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == pid:
                    found[process.pid] = process
    return [process for process in found.values() if _runs(process)]


def still_running(processes: Iterable[psutil.Process], *, wait: float) -> list[psutil.Process]:
    """Wait until all have ended, at most ``wait`` seconds, and return those that have not. Blocks.

    A zombie has ended. Nothing is reaped, as psutil's own waiting does: a child's exit status belongs to the event
    loop that started it, which would wait for ever for one that somebody else has fetched.
    """
    deadline = time.monotonic() + wait
    while alive := [process for process in processes if _runs(process)]:
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if kill:
                process.kill()
            else:
                process.terminate()


def end_tree(pid: int, *, grace: float = 5.0) -> None:
    """End the tree of ``pid``: politely first, after ``grace`` seconds for good. Blocks until all are gone.

    Works when the process itself is gone already and only others of its session are left.
    """
    members = tree(pid)
    _signal(members, kill=False)
    alive = still_running(members, wait=grace)
    deadline = time.monotonic() + 5.0
    while alive or (alive := tree(pid)):
        _signal(alive, kill=True)
        alive = still_running(alive, wait=1.0)
        if time.monotonic() > deadline:
            return


async def end_tree_async(pid: int, *, grace: float = 5.0) -> None:
    """Do :func:`end_tree` in a thread."""
    await asyncio.to_thread(end_tree, pid, grace=grace)


async def wait_gone(who: ProcessId, *, poll: float = 0.2) -> None:
    """Return when that process has ended, which need not be a child of ours.

    On Linux the system tells by a pidfd; elsewhere it is looked at every ``poll`` seconds.
    """
    fd = _pidfd(who.pid)
    if fd is not None:
        try:
            if not is_running(who):
                return
            loop = asyncio.get_running_loop()
            gone = loop.create_future()
            loop.add_reader(fd, gone.cancel)
            try:
                await asyncio.wait([gone])
            finally:
                loop.remove_reader(fd)
        finally:
            os.close(fd)
    else:
        while is_running(who):
            await asyncio.sleep(poll)


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None when there is none to be had.

    That need not mean that the process has ended: old systems have none, filters forbid them, and they run out.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    return None


def become(argv: list[str], *, keep_fds: Iterable[int]) -> NoReturn:
    """Replace this process by the program ``argv``, which keeps the descriptors ``keep_fds``.

    Where the system cannot replace processes, the program runs as a child and this process ends with it.
    """
    for fd in keep_fds:
        os.set_inheritable(fd, True)
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":
        sys.exit(subprocess.call(argv, close_fds=False))
    os.execv(argv[0], argv)


def describe_exit(status: int) -> str:
    """Return how a process ended, from its return code as subprocess gives it."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was killed by {name}"
    return f"exited with status {status}"
