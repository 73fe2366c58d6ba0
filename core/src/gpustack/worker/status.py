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
from gpustack.schemas import CpuStatus, FilesystemStatus, GpuStatus, MemoryStatus, WorkerStatus
from gpustack.settings.resources import Resources
from gpustack.worker import described
from gpustack.worker.gpus import Owners, Seen, Shares, percent

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

    def __init__(
        self,
        catalogue: Catalogue,
        host: Host,
        paths: Sequence[Path],
        *,
        owners: Owners = lambda _: {},
        resources: Resources = Resources(),  # noqa: B008  # a value
    ) -> None:
        """``owners`` tells which processes are our engines'; ``resources`` replaces what is detected."""
        self._catalogue = catalogue
        self._resources = resources
        self._shares = Shares(owners)
        self._host = host
        self._paths = tuple(paths)
        self._system: _Asked[SystemDetector[Any]] | None = None
        self._gpus: list[_Asked[GpuDetector[Any]]] = []
        #: Those that show devices to a process, each with the name of its plugin.
        self._showing: list[tuple[str, GpuDetector[Any]]] = []
        #: By vendor: those that are not present, for devices that are described all the same.
        self._spare: dict[str, tuple[str, GpuDetector[Any]]] = {}
        self._last = SystemReading(cores=0, ram_total=0, ram_used=0)
        #: By detector: its devices, each with its use when it was last told.
        self._found: dict[str, dict[GpuDevice, GpuUsage | None]] = {}

    async def __aenter__(self) -> Self:
        for name, registered in sorted(self._catalogue.system_detectors.items()):
            if self._system is None:
                self._system = await self._enter(name, registered)
        for name, each in sorted(self._catalogue.gpu_detectors.items()):
            if (detector := await self._enter(name, each)) is not None:
                self._gpus.append(detector)
        self._show_described()
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
            if isinstance(detector, GpuDetector) and detector.vendor in self._described:
                self._spare[detector.vendor] = registered.plugin, detector
            verdict = _is_a(Verdict, await Guard.call(registered.plugin, detector.present), "present")
            if not verdict.ok:
                log.info("detector %s is not used: %s", name, verdict.reason)
                return None
            asked = _Asked(registered.plugin, detector)
            await asked.enter()
            if isinstance(detector, GpuDetector):
                self._showing.append((registered.plugin, detector))
        except (GPUStackError, TimeoutError) as error:
            line = _line(error) if str(error) else f"it was not opened within {_PATIENCE:.0f} s"
            self._catalogue.note_unfit(registered, line)
            log.warning("detector %s is not used: %s", name, line)
        else:
            return asked
        return None

    @property
    def devices(self) -> tuple[GpuDevice, ...]:
        """The devices found at the last measurement, or described."""
        return tuple(device for device, _ in self._seen())

    @property
    def _described(self) -> set[str]:
        """The vendors of the GPUs that are described."""
        return {each.vendor for each in self._resources.gpu_devices or ()}

    def _seen(self) -> list[Seen]:
        found = [each for found in self._found.values() for each in found.items()]
        return described.gpus(self._resources, found)

    def _show_described(self) -> None:
        lacking = self._described - {detector.vendor for _, detector in self._showing}
        self._showing += [self._spare[vendor] for vendor in sorted(lacking & self._spare.keys())]
        if unknown := sorted(lacking - self._spare.keys()):
            log.warning(
                "resources: no installed detector is for GPUs of %s, so engines there see all of them",
                ", ".join(unknown),
            )

    def platform(self) -> Platform:
        """Return what engines are installed for."""
        return Platform.of(platform.system().lower(), platform.machine().lower(), self.devices)

    async def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        """Return what shows an engine exactly ``devices``; without any it sees none at all.

        Raises PluginError when a detector cannot tell.
        """
        found: list[DeviceExposure] = []
        for plugin, detector in self._showing:
            mine = [device for device in devices if device.vendor == detector.vendor]
            exposure = await Guard.call(plugin, detector.expose, mine)
            found.append(_is_a(DeviceExposure, exposure, "expose"))
        return DeviceExposure(
            env={name: value for each in found for name, value in each.env.items()},
            requests=tuple(request for each in found for request in each.requests),
            device_files=tuple(file for each in found for file in each.device_files),
        )

    async def measure(self) -> WorkerStatus:
        """Return the present figures, those of a detector that fails as last known.

        Takes as long as a detector may at most twice: the first time when one hangs.
        """
        await asyncio.gather(self._measure_system(), *(self._measure(each) for each in self._gpus))
        gpus = await self._shares.statuses(self._seen())
        return described.machine(self._resources, _status(self._last, gpus))

    async def _measure_system(self) -> None:
        if (asked := self._system) is not None:

            async def measure() -> SystemReading:
                return _is_a(SystemReading, await asked.detector.measure(self._paths), "measure")

            self._last = await asked.ask(measure, self._last)

    async def _measure(self, asked: _Asked[GpuDetector[Any]]) -> None:
        # What is wrong with an answer shows where the detector is asked, so that it is the detector's failure.
        async def devices() -> dict[GpuDevice, GpuUsage | None]:
            found = await asked.detector.devices()
            return {_is_a(GpuDevice, device, "devices"): last.get(device) for device in found}

        async def usages() -> dict[GpuDevice, GpuUsage | None]:
            used = dict(await asked.detector.usage())
            each = ((device, used.get(device.uuid)) for device in found)
            return {one: use and _is_a(GpuUsage, use, "usage") for one, use in each}

        name = asked.detector.name
        last = self._found.get(name, {})
        self._found[name] = found = await asked.ask(devices, last)
        if found:
            self._found[name] = await asked.ask(usages, found)


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
            utilization_rate=percent(reading.ram_used, reading.ram_total),
            is_unified_memory=reading.unified_memory or any(each.memory.is_unified_memory for each in gpus),
        ),
        swap=MemoryStatus(
            total=reading.swap_total,
            used=reading.swap_used,
            utilization_rate=percent(reading.swap_used, reading.swap_total),
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


def _os() -> dict[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return {"name": platform.system(), "version": platform.version()}
    return {"name": release.get("NAME", ""), "version": release.get("VERSION_ID", "")}


def _uptime() -> dict[str, float]:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return {} if clock is None else {"uptime": round(time.clock_gettime(clock), 1)}
