"""A control group for each engine, where the system allows us to make one: nothing that it starts gets out of it.

Children that change their session and clean their environment are found by nothing else. Needs version 2 of control
groups (Linux), and that the group we run in is ours to divide: as root, or where systemd delegates (``Delegate=yes``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import sys
import time
from pathlib import Path

from gpustack.kit.text import human_bytes

log = logging.getLogger(__name__)

_PREFIX = "gpustack-engine-"
#: Seconds until a group whose last process has just ended can be removed.
_EMPTIES = 1.0


def name_of(record: str) -> str:
    """Return the name of the group of the engine whose record has this path."""
    path = Path(record)
    return f"{_PREFIX}{hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:12]}-{path.stem}"


def make(record: str, *, memory_limit: int = 0) -> str:
    """Make the group of an engine and return its path; "" where that is not allowed, which the log tells once.

    Beyond ``memory_limit`` bytes the system ends what is in it; 0 sets no limit.
    """
    if (ours := _ours()) is None:
        return ""
    group = ours / name_of(record)
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        _not_allowed(f"{ours}: {error.strerror}")
        return ""
    if memory_limit:
        try:
            (group / "memory.max").write_text(str(memory_limit), encoding="ascii")
            (group / "memory.oom.group").write_text("1", encoding="ascii")
        except OSError as error:
            log.warning(
                "the limit of %s is not set: %s: %s; it takes a control group whose memory is ours to divide",
                *(human_bytes(memory_limit), group / "memory.max", error.strerror),
            )
    return str(group)


def put(group: str, pid: int) -> bool:
    """Move a process that was just started into its group, with what it started meanwhile; tell whether that went."""
    try:
        procs = Path(group) / "cgroup.procs"
        procs.write_text(str(pid), encoding="ascii")
    except OSError as error:
        # One that has ended already needs no group.
        if not isinstance(error, ProcessLookupError):
            _not_allowed(f"{group}: {error.strerror}")
        return False
    with contextlib.suppress(OSError, ValueError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                procs.write_text(child, encoding="ascii")
    return True


def members(group: str) -> list[int]:
    """Return the processes in a group and in those below it; none where there is no such group, or none of ours."""
    found: list[int] = []
    if not _is_ours(group):
        return found
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(OSError, ValueError):
            text = (Path(folder) / "cgroup.procs").read_text(encoding="ascii")
            # Those of another namespace are numbered 0.
            found += [int(line) for line in text.split() if int(line) > 0]
    return found


def kill(group: str) -> None:
    """End everything in a group at once, also what is being started at this moment."""
    if _is_ours(group):
        with contextlib.suppress(OSError):  # systems before Linux 5.14 have no such file
            (Path(group) / "cgroup.kill").write_text("1", encoding="ascii")


def remove(group: str) -> None:
    """Remove an empty group with those below it. What is not empty stays."""
    if not _is_ours(group):
        return
    deadline = time.monotonic() + _EMPTIES
    for folder, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.02)
            else:
                break


def _is_ours(group: str) -> bool:
    """Tell whether a path that was read from a record is that of a group of an engine."""
    return bool(group) and Path(group).name.startswith(_PREFIX) and _mount_of(Path(group)) is not None


def _mount_of(path: Path) -> Path | None:
    return next((mount for _, mount in _mounts() if path.is_relative_to(mount)), None)


@functools.cache
def _ours() -> Path | None:
    """Return the group that this process is in; None where there are none of version 2, or it cannot be seen."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    for root, mount in _mounts():
        if inside is None or ".." in inside.split("/"):
            break
        # What is mounted may be a part of the whole, as in a container.
        below = Path(inside)
        with contextlib.suppress(ValueError):
            group = mount / below.relative_to(root)
            if group.is_dir():
                return group
    _not_allowed("this system has no control groups of version 2 that can be seen from here")
    return None


def _mounts() -> list[tuple[Path, Path]]:
    """Return the mounts of control groups of version 2: the group that each shows, and where it is."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            fields, _, kind = line.partition(" - ")
            if kind.startswith("cgroup2 "):
                words = fields.split(" ")
                found.append((Path(words[3]), Path(words[4])))
    return found


@functools.cache
def _not_allowed(why: str) -> None:
    """Tell once what engines go without."""
    log.info(
        "engines get no control group of their own (%s): what they start is found by session and environment",
        why,
    )
