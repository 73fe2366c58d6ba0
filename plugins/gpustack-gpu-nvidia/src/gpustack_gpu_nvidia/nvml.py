"""What NVML says, read with ``nvidia-ml-py``. Everything here blocks, and a driver in trouble may block for ever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

from gpustack.plugin import GpuDevice, GpuProcess, GpuUsage, TryAgain
from gpustack_gpu_nvidia.topology import cliques, node_of, paths

T = TypeVar("T")

VENDOR = "nvidia"
#: Where the number of a slice begins: the second one of the third GPU is number 301. They are then the same whatever
#: becomes of other GPUs, and no GPU has such a number: a machine has at most 64.
_SLICES = 100
#: Memory nodes that are asked for, in words of 64.
_NODE_WORDS = 16
_ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada-Lovelace",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}
#: Events after which a GPU works no more, or wrongly, until it is reset. Those that an application brings upon itself
#: (13, 31, 43, 45, 94 and others) are not among them.
_XIDS = {
    48: "its memory has an error that cannot be corrected",
    62: "its own controller has halted",
    64: "a defective row of its memory could not be replaced",
    74: "an NVLink has failed",
    79: "it has fallen off the bus",
    95: "an error of its memory could not be contained",
    119: "its system processor does not answer",
    120: "its system processor has failed",
    140: "its memory has an error that it could not recover from",
}


@dataclass(frozen=True, slots=True)
class _Found:
    """A device with its handle, and that of the whole GPU where it is a slice of one."""

    device: GpuDevice
    handle: Any
    whole: Any

    @property
    def uuid(self) -> str:
        """Return the uuid of the whole GPU."""
        return self.device.parent_uuid or self.device.uuid


class Nvml:
    """A session with the driver, opened when it is first needed. One thread at a time."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._nvml: Any = None
        self._warn = warn
        #: What was said already, by device: a GPU that is lost is lost at every look.
        self._told: dict[str, str] = {}
        self._topology: tuple[tuple[str, ...], dict[str, tuple[str, ...]], dict[str, str]] | None = None
        self._events: Any = None
        self._watched: set[str] = set()
        #: The events that have happened to a GPU, by its uuid. Only a reset mends it, which ends the session as well.
        self._failed: dict[str, dict[int, None]] = {}

    # The session ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session; one that is not open stays so."""
        nvml, self._nvml = self._nvml, None
        if nvml is None:
            return
        events, self._events = self._events, None
        self._watched.clear()
        self._failed.clear()
        self._topology = None
        try:
            if events is not None:
                nvml.nvmlEventSetFree(events)
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            self._warn(f"closing NVML failed: {error}")

    def devices(self) -> list[GpuDevice]:
        """Return what is there and can be reached, by index. Raises TryAgain when NVML as a whole does not work."""
        return [each.device for each in self._found()]

    def usage(self) -> dict[str, GpuUsage]:
        """Return how each device is used; one that cannot be read is left out. Raises TryAgain as ``devices`` does."""
        found = self._found()
        self._take_events(found)
        used = {each.device.uuid: self._of_device(each.device.uuid, self._usage, each) for each in found}
        return {uuid: usage for uuid, usage in used.items() if usage is not None}

    def _found(self) -> list[_Found]:
        nvml = import_module("pynvml")
        try:
            if self._nvml is None:
                nvml.nvmlInit()
                self._nvml = nvml
            return sorted(self._all(), key=lambda each: each.device.index)
        except nvml.NVMLError as error:
            # As after an update or a restart of the driver: the next time begins anew.
            self.close()
            raise TryAgain(why_absent(error, nvml), after=30) from error

    # Devices ----------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[_Found]:
        nvml = self._nvml
        cuda = self._maybe(nvml.nvmlSystemGetCudaDriverVersion, default=0)
        versions = (
            nvml.nvmlSystemGetDriverVersion(),
            f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        )
        gpus: list[tuple[GpuDevice, Any]] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = self._of_device(f"GPU {index}", self._describe, index, versions)
            if gpu is not None:
                gpus.append(gpu)
        where, links = self._places(gpus)
        for device, handle in gpus:
            gpu = (
                replace(device, topology=where.get(device.uuid, ()), link_group=links.get(device.uuid, "")),
                handle,
            )
            slices = self._of_device(f"GPU {device.index}", self._slices, *gpu)
            yield from slices or ()

    def _describe(self, index: int, versions: tuple[str, str]) -> tuple[GpuDevice, Any]:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = self._maybe(nvml.nvmlDeviceGetMemoryInfo, handle, default=None)
        major, minor = self._maybe(nvml.nvmlDeviceGetCudaComputeCapability, handle, default=(0, 0))
        limit = self._maybe(nvml.nvmlDeviceGetEnforcedPowerLimit, handle, default=0)
        words = self._maybe(
            nvml.nvmlDeviceGetMemoryAffinity,
            handle,
            _NODE_WORDS,
            nvml.NVML_AFFINITY_SCOPE_NODE,
            default=(),
        )
        device = GpuDevice(
            uuid=nvml.nvmlDeviceGetUUID(handle),
            index=index,
            vendor=VENDOR,
            name=nvml.nvmlDeviceGetName(handle),
            # Those that share the processor's memory say nothing of their own.
            memory_total=memory.total if memory is not None else _ram(),
            unified_memory=memory is None,
            type="cuda",
            compute_capability=f"{major}.{minor}" if major else "",
            architecture=_ARCHITECTURES.get(
                self._maybe(nvml.nvmlDeviceGetArchitecture, handle, default=-1), ""
            ),
            device_index=index,
            cores=self._maybe(nvml.nvmlDeviceGetNumGpuCores, handle, default=0),
            power_limit_watts=limit / 1000,
            numa_node=node_of(tuple(words)),
            driver_version=versions[0],
            runtime_version=versions[1],
        )
        return device, handle

    def _slices(self, gpu: GpuDevice, handle: Any) -> list[_Found]:
        """Return the MIG devices of a GPU; the GPU itself when it is not in that mode."""
        nvml = self._nvml
        current, _ = self._maybe(nvml.nvmlDeviceGetMigMode, handle, default=(0, 0))
        if not current:
            return [_Found(gpu, handle, handle)]
        found = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            mig = self._maybe(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number, default=None)
            if mig is None:
                continue
            device = replace(
                gpu,
                uuid=nvml.nvmlDeviceGetUUID(mig),
                index=(gpu.index + 1) * _SLICES + number,
                name=nvml.nvmlDeviceGetName(mig),
                memory_total=nvml.nvmlDeviceGetMemoryInfo(mig).total,
                parent_uuid=gpu.uuid,
                cores=0,
                link_group="",
            )
            found.append(_Found(device, mig, handle))
        if not found:
            self._tell(f"GPU {gpu.index}", "is in MIG mode and has no instance, so nothing can run on it")
        return found

    def _places(self, gpus: list[tuple[GpuDevice, Any]]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """Return the topology and the link group of each GPU by uuid, read anew when another one comes or goes."""
        uuids = tuple(device.uuid for device, _ in gpus)
        if self._topology is None or self._topology[0] != uuids:
            nvml, handles = self._nvml, [handle for _, handle in gpus]
            pairs = [(a, b) for a in range(len(gpus)) for b in range(a + 1, len(gpus))]
            meet = {
                (a, b): self._maybe(
                    nvml.nvmlDeviceGetTopologyCommonAncestor, handles[a], handles[b], default=None
                )
                for a, b in pairs
            }
            linked = {
                (a, b)
                for a, b in pairs
                if self._maybe(
                    nvml.nvmlDeviceGetP2PStatus,
                    handles[a],
                    handles[b],
                    nvml.NVML_P2P_CAPS_INDEX_NVLINK,
                    default=None,
                )
                == nvml.NVML_P2P_STATUS_OK
            }
            known = None not in meet.values()
            where = paths(len(gpus), lambda a, b: meet[a, b]) if known else [()] * len(gpus)
            groups = cliques(len(gpus), lambda a, b: (a, b) in linked)
            links = {uuids[each]: f"nvlink{number}" for number, group in enumerate(groups) for each in group}
            self._topology = (uuids, dict(zip(uuids, where, strict=True)), links)
        return self._topology[1:]

    # Use --------------------------------------------------------------------------------------------------------

    def _usage(self, found: _Found) -> GpuUsage:
        nvml, handle, whole = self._nvml, found.handle, found.whole
        processes = self._processes(handle)
        if found.device.unified_memory:
            told = [each.memory_used or 0 for each in processes or ()]
            used = min(sum(told), found.device.memory_total)
        else:
            used = nvml.nvmlDeviceGetMemoryInfo(handle).used
        rates = self._maybe(nvml.nvmlDeviceGetUtilizationRates, handle, default=None)
        errors = self._maybe(
            nvml.nvmlDeviceGetTotalEccErrors,
            whole,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
            default=0,
        )
        return GpuUsage(
            memory_used=used,
            utilization=float(rates.gpu) if rates is not None else 0.0,
            temperature=float(
                self._maybe(nvml.nvmlDeviceGetTemperature, whole, nvml.NVML_TEMPERATURE_GPU, default=0)
            ),
            power_watts=self._maybe(nvml.nvmlDeviceGetPowerUsage, whole, default=0) / 1000,
            processes=processes,
            faults=tuple(self._faults(found.uuid, whole)),
            memory_errors=errors,
        )

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        """Return who uses a device, for whatever: a process may compute and draw, and is one. None: nobody tells."""
        nvml = self._nvml
        found: dict[int, int | None] = {}
        answered = False
        for call in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetMPSComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            running = self._maybe(call, handle, default=None)
            answered = answered or (
                running is not None and call is not nvml.nvmlDeviceGetGraphicsRunningProcesses
            )
            for each in running or ():
                known, told = found.get(each.pid), each.usedGpuMemory
                found[each.pid] = told if known is None else max(known, told or 0)
        if not answered:
            return None
        return tuple(GpuProcess(pid=pid, memory_used=used) for pid, used in sorted(found.items()))

    def _faults(self, uuid: str, handle: Any) -> Iterator[str]:
        nvml = self._nvml
        for xid in self._failed.get(uuid, ()):
            yield f"{_XIDS[xid]} (Xid {xid}); it has to be reset"
        _, _, pending, failed = self._maybe(nvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0))
        if failed:
            yield "a defective row of its memory could not be replaced"
        if pending or self._maybe(nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle, default=0):
            yield "defective memory is replaced at its next reset"

    def _take_events(self, found: list[_Found]) -> None:
        """Note what has happened to GPUs since the last look. Where events are not told, faults are fewer."""
        nvml = self._nvml
        try:
            if self._events is None:
                self._events = nvml.nvmlEventSetCreate()
            for each in found:
                if each.uuid not in self._watched:
                    self._watched.add(each.uuid)
                    kind = nvml.nvmlEventTypeXidCriticalError
                    self._maybe(nvml.nvmlDeviceRegisterEvents, each.whole, kind, self._events, default=None)
            while True:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                if event.eventData in _XIDS:
                    happened = self._failed.setdefault(nvml.nvmlDeviceGetUUID(event.device), {})
                    happened[event.eventData] = None
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_TIMEOUT:  # which says that there are no more
                self._tell("events of GPUs", f"are not told: {error}")

    # Errors -----------------------------------------------------------------------------------------------------

    def _maybe(self, call: Callable[..., Any], *args: Any, default: Any) -> Any:
        """Return what ``call`` answers, or ``default`` where this device, driver or user cannot have it."""
        nvml = self._nvml
        try:
            return call(*args)
        except nvml.NVMLError as error:
            if error.value in self._absent():
                return default
            raise

    def _absent(self) -> tuple[int, ...]:
        nvml = self._nvml
        return (
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_INVALID_ARGUMENT,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_NOT_FOUND,
            nvml.NVML_ERROR_NO_DATA,
            nvml.NVML_ERROR_UNKNOWN,
        )

    def _of_device(self, name: str, work: Callable[..., T], *args: Any) -> T | None:
        """Return ``work(*args)``; None, and a line once, when that device fails, as a GPU that is lost does."""
        nvml = self._nvml
        try:
            answer = work(*args)
        except nvml.NVMLError as error:
            # Not one device but the session: there is nothing to be read at all.
            if error.value in (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                raise
            self._tell(name, f"is left out: {error}")
            return None
        return answer

    def _tell(self, name: str, what: str) -> None:
        if self._told.get(name) != what:
            self._told[name] = what
            self._warn(f"{name} {what}")


def why_absent(error: Exception, nvml: Any) -> str:
    """Return why NVML cannot be used here, in words for people."""
    value = getattr(error, "value", None)
    if value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "the NVIDIA driver is not installed: there is no libnvidia-ml.so.1"
    if value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is installed and not loaded"
    if value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated and the old one is still loaded; restart the machine"
    return f"NVML does not work: {error}"


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
