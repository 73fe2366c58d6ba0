"""What the system lets processes take, and who we are to it; where a system has no such thing (Windows), it is nothing."""

from __future__ import annotations

import contextlib
import os
import sys

if sys.platform != "win32":
    import resource


def most_open_files(wanted: int) -> int:
    """Return how many of so many ``wanted`` files a process of ours may have open at most."""
    if sys.platform == "win32":
        return wanted
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)


def locked_memory() -> int:
    """Return how many bytes we may keep from being moved; -1 for as many as there are."""
    return -1 if sys.platform == "win32" else resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]


def limit_process(pid: int, *, open_files: int) -> None:
    """Let a process open so many files, as far as it may, and leave no core behind, which is as large as its memory.

    Elsewhere than on Linux a process has the limits of whoever started it. One that has ended is no error.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, ValueError):  # it has ended already, or the system forbids it
        hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        files = open_files if hard == resource.RLIM_INFINITY else min(hard, open_files)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, resource.prlimit(pid, resource.RLIMIT_CORE)[1]))


def user_id() -> int | None:
    """Return the number of the user that we run as; None where users have none. Root is 0."""
    return None if sys.platform == "win32" else os.geteuid()


def group_id() -> int | None:
    """Return the number of the group that we run as; None where groups have none."""
    return None if sys.platform == "win32" else os.getegid()
