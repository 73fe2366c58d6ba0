"""The accelerators of a worker as the server is told of them, with what of their memory is not our engines'."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from gpustack.plugin import GpuDevice, GpuProcess, GpuUsage
from gpustack.schemas import GpuCore, GpuMemory, GpuProcessStatus, GpuStatus

#: A device and how it is used, None while nobody knows.
Seen = tuple[GpuDevice, GpuUsage | None]
#: Returns the instance of each of these processes that belongs to an engine of ours.
Owners = Callable[[Collection[int]], Mapping[int, int]]

#: Processes of a GPU that the server is told of; of our own it is told in any case.
_MOST = 16
#: The number of the namespace that the machine's own processes are in (Linux, PROC_PID_INIT_INO).
_FIRST_NAMESPACE = 0xEFFFFFFC


class Shares:
    """Tells whose memory is used on the GPUs. Drivers know processes by the numbers that they have on the machine itself."""

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        #: A process of ours was among those that a driver told of: numbers mean here what they mean there.
        self._proved = False

    async def statuses(self, seen: Sequence[Seen]) -> list[GpuStatus]:
        """Return what the server is told of the devices that were seen."""
        pids = {each.pid for _, usage in seen if usage is not None for each in usage.processes or ()}
        ours = await asyncio.to_thread(self._owners, pids) if pids else {}
        self._proved = self._proved or bool(ours)
        return [gpu_status(device, usage, ours, told=self._told) for device, usage in seen]

    @property
    def _told(self) -> bool:
        # In a container whose numbers are its own, our engines would count as others, which they are not.
        return self._proved or numbers_are_the_machines()


@functools.cache
def numbers_are_the_machines() -> bool:
    """Tell whether processes have here the numbers that they have on the machine itself."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_NAMESPACE
    except OSError:
        return False


def gpu_status(
    device: GpuDevice, usage: GpuUsage | None, ours: Mapping[int, int], *, told: bool
) -> GpuStatus:
    """Return what the server is told of one device; ``ours`` has the instances of our processes.

    Without ``told`` it is not known whether all of ours are in there, and nothing is said of others.
    """
    now = usage or GpuUsage(memory_used=0)
    return GpuStatus(
        uuid=device.uuid,
        index=device.index,
        vendor=device.vendor,
        name=device.name,
        type=device.type,
        driver_version=device.driver_version,
        runtime_version=device.runtime_version,
        compute_capability=device.compute_capability,
        memory=GpuMemory(
            total=device.memory_total,
            used=now.memory_used,
            utilization_rate=percent(now.memory_used, device.memory_total),
            is_unified_memory=device.unified_memory,
            others=_others(now, ours) if told else None,
        ),
        core_utilization_rate=now.utilization,
        core=GpuCore(total=device.cores, utilization_rate=now.utilization),
        temperature=now.temperature,
        power=device.power_limit_watts,
        power_used=now.power_watts,
        arch_family=device.architecture,
        device_index=device.index if device.device_index is None else device.device_index,
        parent_uuid=device.parent_uuid,
        numa_node=device.numa_node,
        topology=list(device.topology),
        link_group=device.link_group,
        processes=None if now.processes is None else _largest(now.processes, ours),
        faults=list(now.faults),
        memory_errors=now.memory_errors,
    )


def _others(usage: GpuUsage, ours: Mapping[int, int]) -> int | None:
    """Return the used bytes that are not our engines'; None where it is not known how much is theirs."""
    if usage.processes is None:
        return None
    taken = [each.memory_used for each in usage.processes if each.pid in ours]
    known = [each for each in taken if each is not None]
    return max(0, usage.memory_used - sum(known)) if len(known) == len(taken) else None


def _largest(processes: Sequence[GpuProcess], ours: Mapping[int, int]) -> list[GpuProcessStatus]:
    # Ours first, whose memory is measured by this.
    by_size = sorted(processes, key=lambda each: (each.pid not in ours, -(each.memory_used or 0), each.pid))
    return [
        GpuProcessStatus(pid=each.pid, memory=each.memory_used, instance_id=ours.get(each.pid))
        for each in by_size[: max(_MOST, sum(each.pid in ours for each in processes))]
    ]


def percent(part: float, total: float) -> float:
    """Return ``part`` of ``total`` in percent, with one digit; 0 of nothing."""
    return round(100 * part / total, 1) if total > 0 else 0.0
