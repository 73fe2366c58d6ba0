"""What the control groups of Linux allow this process: in a container less than the machine has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: Version 1 says "no limit" with a number near 2**63.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits in force; None where there is none. Memory in bytes, ``cores`` may be a part of one."""

    memory: int | None = None
    #: Used of that memory, without what the kernel can drop at once.
    memory_used: int | None = None
    cores: float | None = None


def read_limits(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> Limits:
    """Return the tightest limits on the way from this process's group to the root; never raises."""
    if (root / "cgroup.controllers").is_file():
        return _version_2(root, _groups(own).get("", "/"))
    return _version_1(root, _groups(own))


def _groups(own: Path) -> dict[str, str]:
    """Return the path of this process's group by controller; the one of version 2 has no name."""
    groups: dict[str, str] = {}
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _levels(base: Path, group: str) -> list[Path]:
    """Return the group's folder and those above it, as far as they are visible from inside a container."""
    parts = [part for part in group.split("/") if part and part != ".."]
    return [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _version_2(root: Path, group: str) -> Limits:
    memory, used, cores = None, None, None
    for level in _levels(root, group):
        limit = _number(level / "memory.max")
        if limit is not None and (memory is None or limit < memory):
            memory = limit
            used = _without_cache(level, "memory.current", "inactive_file")
        quota = _text(level / "cpu.max").split()
        if len(quota) == 2 and all(each.isdigit() for each in quota) and int(quota[1]) > 0:
            share = int(quota[0]) / int(quota[1])
            cores = share if cores is None else min(cores, share)
    return Limits(memory=memory, memory_used=used, cores=cores)


def _version_1(root: Path, groups: dict[str, str]) -> Limits:
    memory, used, cores = None, None, None
    for level in _levels(root / "memory", groups.get("memory", "/")):
        limit = _number(level / "memory.limit_in_bytes")
        if limit is not None and limit < _NO_LIMIT and (memory is None or limit < memory):
            memory = limit
            used = _without_cache(level, "memory.usage_in_bytes", "total_inactive_file")
    base = root / "cpu" if (root / "cpu").is_dir() else root / "cpu,cpuacct"
    for level in _levels(base, groups.get("cpu", "/")):
        quota, period = _number(level / "cpu.cfs_quota_us"), _number(level / "cpu.cfs_period_us")
        if quota and period:
            share = quota / period
            cores = share if cores is None else min(cores, share)
    return Limits(memory=memory, memory_used=used, cores=cores)


def _without_cache(level: Path, usage: str, droppable: str) -> int | None:
    used = _number(level / usage)
    if used is None:
        return None
    for line in _text(level / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == droppable and value.isdigit():
            return max(0, used - int(value))
    return used


def _number(path: Path) -> int | None:
    """Return the number in a file, or None when there is no file or it says ``max`` or -1."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
