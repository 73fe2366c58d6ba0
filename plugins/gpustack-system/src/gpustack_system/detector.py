"""The detector."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from gpustack.plugin import Filesystem, Host, NoSettings, SystemDetector, SystemReading, Verdict
from gpustack_system.cgroup import Limits, read_limits

#: Seconds that looking at the file systems may take.
_PATIENCE = 2.0


class PsutilDetector(SystemDetector[NoSettings]):
    """Measures any system that psutil knows. In a container its limits count as the machine's size."""

    name = "psutil"
    settings_type = NoSettings

    def present(self) -> Verdict:
        """Agree: psutil runs wherever GPUStack does."""
        return Verdict.yes()

    def __init__(self, settings: NoSettings, host: Host) -> None:
        super().__init__(settings, host)
        self._looking: asyncio.Future[tuple[Filesystem, ...]] | None = None
        self._filesystems: tuple[Filesystem, ...] = ()

    async def measure(self, paths: Sequence[Path]) -> SystemReading:
        """Return the present figures. The first measurement of the processor's use is 0: it needs a span.

        While a file system hangs, as one on a network does, those of all are as last known.
        """
        reading = await asyncio.to_thread(_measure)
        return replace(reading, filesystems=await self._look(tuple(paths)))

    async def _look(self, paths: tuple[Path, ...]) -> tuple[Filesystem, ...]:
        if self._looking is None:
            self._looking = asyncio.ensure_future(asyncio.to_thread(_filesystems, paths))
            await asyncio.wait([self._looking], timeout=_PATIENCE)
        if self._looking.done():
            # Never two threads at a time: one that hangs cannot be ended.
            looked, self._looking = self._looking, None
            self._filesystems = looked.result()
        return self._filesystems


def _measure() -> SystemReading:
    limits = read_limits()
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total, used = within(limits, memory.total, memory.total - memory.available)
    return SystemReading(
        cores=cores(limits),
        ram_total=total,
        ram_used=used,
        cpu_utilization=psutil.cpu_percent(interval=None),
        swap_total=swap.total,
        swap_used=swap.used,
    )


def within(limits: Limits, total: int, used: int) -> tuple[int, int]:
    """Return size and use of the memory, given the machine's: a container's own where it has a limit."""
    if limits.memory is None or limits.memory >= total:
        return total, used
    # What others use of the machine may leave less than the limit promises.
    own = limits.memory_used or 0
    free = min(limits.memory - own, total - used)
    return limits.memory, max(0, limits.memory - max(0, free))


def cores(limits: Limits) -> int:
    """Return the cores this process may use, at least 1; a part of one counts as one."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    if limits.cores is not None:
        count = min(count, math.ceil(limits.cores))
    return max(1, count)


def _filesystems(paths: Sequence[Path]) -> tuple[Filesystem, ...]:
    mounts = {each.mountpoint: each.device for each in psutil.disk_partitions(all=True)}
    found: dict[str, Filesystem] = {}
    for path in paths:
        mount = _mount_of(path, mounts)
        if mount in found:
            continue
        try:
            usage = psutil.disk_usage(mount)
        except OSError:
            continue
        # psutil's "free" is what an ordinary user may take; the rest is reserved for root.
        found[mount] = Filesystem(
            mount_point=mount,
            mount_from=mounts.get(mount, ""),
            total=usage.total,
            used=usage.used,
            free=usage.total - usage.used,
            available=usage.free,
        )
    return tuple(found.values())


def _mount_of(path: Path, mounts: dict[str, str]) -> str:
    for each in (path.resolve(), *path.resolve().parents):
        if str(each) in mounts:
            return str(each)
    return path.resolve().anchor
