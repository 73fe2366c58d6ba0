"""What the settings say a worker has, in the place of what was found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpustack.plugin import GpuDevice, GpuUsage
from gpustack.schemas import CpuStatus, GpuStatus, MemoryStatus, WorkerStatus
from gpustack.settings.resources import Gpu, Memory, Resources, Swap
from gpustack.worker.gpus import Seen, percent

#: What engines call the devices of a vendor.
_TYPES = {"nvidia": "cuda", "amd": "rocm", "ascend": "npu", "apple": "mps"}


def gpus(resources: Resources, found: Sequence[Seen]) -> list[Seen]:
    """Return the GPUs as they are described; all that were found when none are.

    One that was found, with the same uuid or else the same vendor and index, gives what the description leaves out:
    its uuid, which shows it to engines, its use, and the rest.
    """
    if resources.gpu_devices is None:
        return list(found)
    by_uuid = {device.uuid: (device, usage) for device, usage in found}
    # One that is named by its uuid is no other one as well.
    named = {each.uuid for each in resources.gpu_devices}
    by_index = {
        (device.vendor, device.index): (device, usage) for device, usage in found if device.uuid not in named
    }
    return [
        _gpu(each, by_uuid.get(each.uuid) if each.uuid else by_index.get((each.vendor, each.index)))
        for each in sorted(resources.gpu_devices, key=lambda gpu: gpu.index)
    ]


def _gpu(said: Gpu, found: Seen | None) -> Seen:
    real = said.memory.total if found is None else found[0].memory_total
    device, usage = found or (
        GpuDevice(
            uuid=f"{said.vendor}-{said.index}",
            index=said.index,
            vendor=said.vendor,
            name=said.name,
            memory_total=said.memory.total,
            type=_TYPES.get(said.vendor, ""),
        ),
        None,
    )
    device = replace(
        device,
        uuid=said.uuid or device.uuid,
        index=said.index,
        vendor=said.vendor,
        name=said.name,
        memory_total=said.memory.total,
        type=said.type or device.type,
        driver_version=said.driver_version or device.driver_version,
        runtime_version=said.runtime_version or device.runtime_version,
        compute_capability=said.compute_capability or device.compute_capability,
        architecture=said.arch_family or device.architecture,
        cores=device.cores if said.core is None else said.core.total,
        power_limit_watts=said.power or device.power_limit_watts,
        numa_node=device.numa_node if said.numa_node is None else said.numa_node,
        link_group=said.link_group or device.link_group,
    )
    if said.memory.used is not None:
        # The processes that are found have their part of something else.
        usage = replace(usage or GpuUsage(memory_used=0), memory_used=said.memory.used, processes=None)
    elif usage is not None:
        usage = replace(usage, memory_used=_used(usage.memory_used, real, said.memory.total))
    return device, usage


def machine(resources: Resources, status: WorkerStatus) -> WorkerStatus:
    """Return the status with processor and memory as they are described, and whose the described use is."""
    changes: dict[str, CpuStatus | MemoryStatus | list[GpuStatus]] = {}
    if resources.cpu is not None:
        changes["cpu"] = status.cpu.model_copy(update={"total": resources.cpu.total})
    if resources.memory is not None:
        unified = resources.memory.is_unified_memory
        memory = _memory(resources.memory, status.memory)
        changes["memory"] = (
            memory if unified is None else memory.model_copy(update={"is_unified_memory": unified})
        )
    if resources.swap is not None:
        changes["swap"] = _memory(resources.swap, status.swap)
    if said := {each.index: each.memory.used for each in resources.gpu_devices or ()}:
        changes["gpu_devices"] = [_used_by_others(each, said[each.index]) for each in status.gpu_devices]
    return status.model_copy(update=changes)


def _used_by_others(gpu: GpuStatus, used: int | None) -> GpuStatus:
    # A use that is described stays the same whatever we run, so nothing of it is ours.
    if used is None:
        return gpu
    return gpu.model_copy(update={"memory": gpu.memory.model_copy(update={"others": used})})


def _used(used: int, real: int, total: int) -> int:
    """Return what of a described ``total`` is not to be had, of a device with ``real`` bytes of which ``used`` are in use.

    Use counts against what is left out of the description first, so that what is free is what is described, or what is
    there when that is less.
    """
    return min(max(0, used - max(0, real - total)), total)


def _memory(said: Memory | Swap, found: MemoryStatus) -> MemoryStatus:
    used = _used(found.used, found.total, said.total) if said.used is None else said.used
    return found.model_copy(
        update={
            "total": said.total,
            "used": used,
            "utilization_rate": percent(used, said.total),
            "others": said.used,
        }
    )
