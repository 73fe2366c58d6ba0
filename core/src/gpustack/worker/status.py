"""What a worker says of its machine: processor, memory, file systems, accelerators, operating system."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast

from gpustack.extensions import Catalogue, Guard, Registered, make
from gpustack.extensions.catalogue import one_line, shown
from gpustack.kit.errors import GPUStackError
from gpustack.kit.threads import SideLoop, outcome_of
from gpustack.plugin import (
    DeviceExposure,
    Extension,
    GpuDetector,
    GpuDevice,
    GpuUsage,
    Host,
    Platform,
    PluginError,
    SystemDetector,
    SystemReading,
    Verdict,
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
        """Open the detector. Raises TimeoutError, or PluginError for whatever the plugin raises."""
        try:
            error = await self._ended(self.detector.__aenter__(), _PATIENCE)
            if error is not None:
                raise _told(error)
        except BaseException:
            self._loop.close()
            raise

    async def close(self) -> None:
        """Close the detector, as far as that goes without waiting for long."""
        try:
            if self._open is None or self._open.done():
                error = await self._ended(self.detector.__aexit__(None, None, None), _FAREWELL)
                if error is not None:
                    log.warning("detector %s: closing it failed: %s", self.detector.name, one_line(error))
        except TimeoutError as error:
            log.warning("detector %s: closing it failed: %s", self.detector.name, _line(error))
        finally:
            self._loop.close()

    async def ask(self, question: Callable[[], Coroutine[Any, Any, T]], default: T) -> T:
        """Return the answer, or ``default`` when the detector fails or takes too long."""
        if self._open is not None and not self._open.done():
            return default
        self._open = asked = self._loop.start(outcome_of(question()))
        # Not cancelled when it takes too long: its thread would go on, and the next one would join it.
        done, _ = await asyncio.wait([asked], timeout=_PATIENCE)
        answer, error = (
            asked.result() if done else (None, TimeoutError(f"no answer within {_PATIENCE:.0f} s"))
        )
        if error is None:
            self._silent = False
            return cast("T", answer)  # without an error it is the detector's own
        self._say(error)
        return default

    def _say(self, error: BaseException) -> None:
        if not self._silent:
            self._silent = True
            known = isinstance(error, GPUStackError | TimeoutError)
            line = _line(error) if known else one_line(error)
            log.warning("detector %s: %s", self.detector.name, line, exc_info=None if known else error)

    async def _ended(self, work: Coroutine[Any, Any, Any], limit: float) -> BaseException | None:
        """Return what ``work`` raises, None for nothing; TimeoutError when it takes longer than ``limit`` seconds."""
        running = self._loop.start(outcome_of(work))
        async with asyncio.timeout(limit):
            await asyncio.wait([running])
        _, error = running.result()
        return error


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
        #: By detector: its devices, each with how it is shown while nothing is known of its use.
        self._found: dict[str, dict[GpuDevice, GpuStatus]] = {}

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
            detector = await make(self._catalogue, registered, self._host)
            verdict = _is_a(Verdict, await Guard.call(registered.plugin, detector.present), "present")
            if not verdict.ok:
                log.info("detector %s is not used: %s", name, verdict.reason)
                return None
            asked = _Asked(registered.plugin, detector)
            await asked.enter()
        except (GPUStackError, TimeoutError) as error:
            line = _line(error) if str(error) else f"it was not opened within {_PATIENCE:.0f} s"
            self._catalogue.note_unfit(registered, line)
            log.warning("detector %s is not used: %s", name, line)
        else:
            return asked
        return None

    @property
    def devices(self) -> tuple[GpuDevice, ...]:
        """The devices found at the last measurement."""
        return tuple(device for found in self._found.values() for device in found)

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
            _is_a(DeviceExposure, exposure, "expose")
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

            async def measure() -> SystemReading:
                return _is_a(SystemReading, await asked.detector.measure(self._paths), "measure")

            self._last = await asked.ask(measure, self._last)
        return []

    async def _measure(self, asked: _Asked[GpuDetector[Any]]) -> list[GpuStatus]:
        # What is wrong with an answer shows where the detector is asked, so that it is the detector's failure.
        async def devices() -> dict[GpuDevice, GpuStatus]:
            found = await asked.detector.devices()
            return {device: _gpu(_is_a(GpuDevice, device, "devices"), None) for device in found}

        async def usages() -> list[GpuStatus]:
            used = dict(await asked.detector.usage())
            each = ((device, used.get(device.uuid)) for device in found)
            return [_gpu(one, use and _is_a(GpuUsage, use, "usage")) for one, use in each]

        name = asked.detector.name
        found = await asked.ask(devices, self._found.get(name, {}))
        self._found[name] = found
        return await asked.ask(usages, list(found.values())) if found else []


def _is_a(kind: type[T], answer: object, method: str) -> T:
    if not isinstance(answer, kind):
        raise PluginError(f"{method} returned {shown(answer)}, which is no {kind.__name__}")
    return answer


def _told(error: BaseException) -> PluginError:
    return error if isinstance(error, PluginError) else PluginError(one_line(error))


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
