"""What a worker says of its machine: processor, memory, file systems, accelerators, operating system."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from gpustack.extensions import Catalogue, Guard
from gpustack.kit.errors import GPUStackError
from gpustack.plugin import GpuDetector, GpuDevice, GpuUsage, Host, Platform, SystemDetector, SystemReading
from gpustack.schemas import CpuStatus, FilesystemStatus, GpuMemory, GpuStatus, MemoryStatus, WorkerStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a detector may take to measure.
_PATIENCE = 5.0


class Machine:
    """Measures with the installed detectors; an async context manager.

    A detector that fails is named in the log once and left out: a worker without figures for one thing still
    works with the others.
    """

    def __init__(self, catalogue: Catalogue, host: Host, paths: Sequence[Path]) -> None:
        self._catalogue = catalogue
        self._host = host
        self._paths = tuple(paths)
        self._stack = AsyncExitStack()
        self._system: SystemDetector[Any] | None = None
        self._gpus: list[tuple[str, GpuDetector[Any]]] = []
        self._silent: set[str] = set()
        self._last = SystemReading(cores=0, ram_total=0, ram_used=0)
        #: The devices found at the last measurement, with their detectors.
        self.devices: tuple[GpuDevice, ...] = ()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        for name, registered in sorted(self._catalogue.system_detectors.items()):
            if self._system is None:
                self._system = await self._open(name, registered)
        for name, each in sorted(self._catalogue.gpu_detectors.items()):
            if (detector := await self._open(name, each)) is not None:
                self._gpus.append((each.plugin, detector))
        if self._system is None:
            log.warning(
                "no system detector is present: cores and memory are unknown; install gpustack-system"
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _open(self, name: str, registered: Any) -> Any:
        try:
            detector = self._catalogue.make(registered, self._host)
            verdict = await Guard.call(registered.plugin, detector.present)
            if not verdict.ok:
                log.info("detector %s is not used: %s", name, verdict.reason)
                return None
            return await self._stack.enter_async_context(detector)
        except GPUStackError as error:
            log.warning("detector %s is not used: %s", name, error)
        except Exception:  # a plugin may raise anything; the worker goes on without it
            log.exception("detector %s is not used: it failed", name)
        return None

    def platform(self) -> Platform:
        """Return what engines are installed for."""
        kinds = sorted({device.type for device in self.devices if device.type})
        return Platform(
            system=platform.system().lower(), machine=platform.machine().lower(), accelerators=tuple(kinds)
        )

    async def expose(self, devices: Sequence[GpuDevice]) -> dict[str, str]:
        """Return the environment that shows a process exactly ``devices``; without any it sees none at all.

        Raises PluginError when a detector cannot tell.
        """
        env: dict[str, str] = {}
        for plugin, detector in self._gpus:
            mine = [device for device in devices if device.vendor == detector.vendor]
            exposure = await Guard.call(plugin, detector.expose, mine)
            env.update(exposure.env)
        return env

    async def measure(self) -> WorkerStatus:
        """Return the present figures; those of a detector that fails are the last known or missing."""
        if self._system is not None:
            self._last = await self._ask(self._system, self._system.measure, self._paths, default=self._last)
        gpus: list[GpuStatus] = []
        devices: list[GpuDevice] = []
        for _, detector in self._gpus:
            none: Sequence[GpuDevice] = ()
            found = await self._ask(detector, detector.devices, default=none)
            nothing: Mapping[str, GpuUsage] = {}
            usage = await self._ask(detector, detector.usage, default=nothing) if found else nothing
            devices.extend(found)
            gpus.extend(_gpu(device, usage.get(device.uuid)) for device in found)
        self.devices = tuple(devices)
        return _status(self._last, gpus)

    async def _ask(self, detector: Any, method: Callable[..., Any], *args: Any, default: T) -> T:
        try:
            async with asyncio.timeout(_PATIENCE):
                answer: T = await method(*args)
        except Exception as error:  # a plugin may raise anything; the worker goes on without it
            if detector.name not in self._silent:
                self._silent.add(detector.name)
                known = isinstance(error, GPUStackError | TimeoutError)
                log.warning("detector %s: %s", detector.name, str(error) or "no answer", exc_info=not known)
            return default
        self._silent.discard(detector.name)
        return answer


def _status(reading: SystemReading, gpus: list[GpuStatus]) -> WorkerStatus:
    return WorkerStatus(
        cpu=CpuStatus(total=reading.cores, utilization_rate=round(reading.cpu_utilization, 1)),
        memory=MemoryStatus(
            total=reading.ram_total,
            used=reading.ram_used,
            utilization_rate=_percent(reading.ram_used, reading.ram_total),
            is_unified_memory=reading.unified_memory,
        ),
        swap=MemoryStatus(
            total=reading.swap_total,
            used=reading.swap_used,
            utilization_rate=_percent(reading.swap_used, reading.swap_total),
        ),
        filesystem=[
            FilesystemStatus(
                name=each.mount_from,
                mount_point=each.mount_point,
                mount_from=each.mount_from,
                total=each.total,
                used=each.used,
                free=each.free,
                available=each.available,
            )
            for each in reading.filesystems
        ],
        os=_os(),
        kernel={"name": platform.system(), "release": platform.release(), "architecture": platform.machine()},
        uptime=_uptime(),
        gpu_devices=gpus,
    )


def _gpu(device: GpuDevice, usage: GpuUsage | None) -> GpuStatus:
    used = usage.memory_used if usage else 0
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
            total=device.memory_total, used=used, utilization_rate=_percent(used, device.memory_total)
        ),
        core_utilization_rate=usage.utilization if usage else 0.0,
        temperature=usage.temperature if usage else 0.0,
    )


def _percent(part: float, total: float) -> float:
    return round(100 * part / total, 1) if total > 0 else 0.0


def _os() -> dict[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return {"name": platform.system(), "version": platform.version()}
    return {"name": release.get("NAME", ""), "version": release.get("VERSION_ID", "")}


def _uptime() -> dict[str, float]:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return {} if clock is None else {"uptime": round(time.clock_gettime(clock), 1)}
