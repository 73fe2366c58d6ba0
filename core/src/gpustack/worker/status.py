"""What a worker says of its machine: processor, memory, file systems, accelerators, operating system."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from gpustack.extensions import Catalogue, Guard, Registered
from gpustack.kit.errors import GPUStackError
from gpustack.kit.threads import SideLoop
from gpustack.plugin import (
    Extension,
    GpuDetector,
    GpuDevice,
    GpuUsage,
    Host,
    Platform,
    SystemDetector,
    SystemReading,
)
from gpustack.schemas import CpuStatus, FilesystemStatus, GpuMemory, GpuStatus, MemoryStatus, WorkerStatus

log = logging.getLogger(__name__)

T = TypeVar("T")
D = TypeVar("D", bound=Extension[Any])

#: Seconds that a detector may take to measure.
_PATIENCE = 5.0
#: Seconds that one may take to close.
_FAREWELL = 0.5


class _Asked(Generic[D]):
    """A detector on an event loop of its own, so that one that hangs keeps nobody else waiting for long.

    It is asked one thing at a time: while a question is open, the next one is answered by what was known before.
    """

    def __init__(self, plugin: str, detector: D) -> None:
        self.plugin = plugin
        self.detector = detector
        self._loop = SideLoop(f"detector {detector.name}")
        self._open: asyncio.Future[Any] | None = None
        self._silent = False

    async def enter(self) -> None:
        """Open the detector. Raises TimeoutError, or whatever the plugin raises."""
        try:
            await asyncio.wait_for(self._loop.start(self.detector.__aenter__()), _PATIENCE)
        except BaseException:
            self._loop.close()
            raise

    async def close(self) -> None:
        """Close the detector, as far as that goes without waiting for long."""
        try:
            if self._open is None or self._open.done():
                await asyncio.wait_for(self._loop.start(self.detector.__aexit__(None, None, None)), _FAREWELL)
        except Exception as error:  # noqa: BLE001  # a plugin may raise anything; the worker ends without it
            log.warning("detector %s: closing it failed: %s", self.detector.name, _line(error))
        finally:
            self._loop.close()

    async def ask(self, question: Callable[[], Coroutine[Any, Any, T]], default: T) -> T:
        """Return the answer, or ``default`` when the detector fails or takes too long."""
        if self._open is not None and not self._open.done():
            return default
        self._open = asked = self._loop.start(question())
        # Not cancelled when it takes too long: its thread would go on, and the next one would join it.
        done, _ = await asyncio.wait([asked], timeout=_PATIENCE)
        error = asked.exception() if done else TimeoutError(f"no answer within {_PATIENCE:.0f} s")
        if error is None:
            self._silent = False
            answer: T = asked.result()
            return answer
        if not self._silent:
            self._silent = True
            known = isinstance(error, GPUStackError | TimeoutError)
            log.warning(
                "detector %s: %s", self.detector.name, _line(error), exc_info=None if known else error
            )
        return default


class Machine:
    """Measures with the installed detectors; an async context manager.

    A detector that fails is named in the log once, and what it said last stays: a worker without fresh figures
    for one thing still works with the others.
    """

    def __init__(self, catalogue: Catalogue, host: Host, paths: Sequence[Path]) -> None:
        self._catalogue = catalogue
        self._host = host
        self._paths = tuple(paths)
        self._system: _Asked[SystemDetector[Any]] | None = None
        self._gpus: list[_Asked[GpuDetector[Any]]] = []
        self._last = SystemReading(cores=0, ram_total=0, ram_used=0)
        self._devices: dict[str, tuple[GpuDevice, ...]] = {}

    async def __aenter__(self) -> Self:
        for name, registered in sorted(self._catalogue.system_detectors.items()):
            if self._system is None:
                self._system = await self._enter(name, registered)
        for name, each in sorted(self._catalogue.gpu_detectors.items()):
            if (detector := await self._enter(name, each)) is not None:
                self._gpus.append(detector)
        if self._system is None:
            log.warning(
                "no system detector is present: cores and memory are unknown; install gpustack-system"
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        closing = [each.close() for each in self._gpus]
        if self._system is not None:
            closing.append(self._system.close())
        await asyncio.gather(*closing)

    async def _enter(self, name: str, registered: Registered[Any]) -> _Asked[Any] | None:
        try:
            detector = self._catalogue.make(registered, self._host)
            verdict = await Guard.call(registered.plugin, detector.present)
            if not verdict.ok:
                log.info("detector %s is not used: %s", name, verdict.reason)
                return None
            asked = _Asked(registered.plugin, detector)
            await asked.enter()
        except (GPUStackError, TimeoutError) as error:
            log.warning("detector %s is not used: %s", name, _line(error))
        except Exception:  # a plugin may raise anything; the worker goes on without it
            log.exception("detector %s is not used: it failed", name)
        else:
            return asked
        return None

    @property
    def devices(self) -> tuple[GpuDevice, ...]:
        """The devices found at the last measurement."""
        return tuple(device for found in self._devices.values() for device in found)

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
        for each in self._gpus:
            mine = [device for device in devices if device.vendor == each.detector.vendor]
            exposure = await Guard.call(each.plugin, each.detector.expose, mine)
            env.update(exposure.env)
        return env

    async def measure(self) -> WorkerStatus:
        """Return the present figures, those of a detector that fails as last known.

        Takes as long as a detector may at most twice: the first time when one hangs.
        """
        _, *found = await asyncio.gather(
            self._measure_system(), *(self._measure(each) for each in self._gpus)
        )
        return _status(self._last, [gpu for gpus in found for gpu in gpus])

    async def _measure_system(self) -> list[GpuStatus]:
        if (asked := self._system) is not None:
            self._last = await asked.ask(lambda: asked.detector.measure(self._paths), self._last)
        return []

    async def _measure(self, asked: _Asked[GpuDetector[Any]]) -> list[GpuStatus]:
        async def devices() -> tuple[GpuDevice, ...]:
            return tuple(await asked.detector.devices())

        async def usages() -> dict[str, GpuUsage]:
            return dict(await asked.detector.usage())

        name = asked.detector.name
        nothing: dict[str, GpuUsage] = {}
        self._devices[name] = found = await asked.ask(devices, self._devices.get(name, ()))
        usage = await asked.ask(usages, nothing) if found else nothing
        return [_gpu(device, usage.get(device.uuid)) for device in found]


def _line(error: BaseException) -> str:
    return str(error) or type(error).__name__


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
