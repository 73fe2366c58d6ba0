"""Detectors of GPUs that are not there: any fleet, described in a file. They stand for the vendors' own detectors; for tests only.

    devices:
      - {name: NVIDIA H100, memory: 80GiB, count: 8, used: 500MiB}
      - {name: AMD MI300X, vendor: amd, memory: 192GiB}

``--fake-gpus-file PATH`` names the file. Each entry has a ``name`` and ``memory``; it may have ``vendor`` (nvidia, amd,
ascend, apple), ``count``, ``used``, ``utilization`` in percent, ``temperature``, ``power`` in watts, ``uuid``, ``type``,
``driver_version``, ``runtime_version`` and ``compute_capability``, ``linked`` for how many in a row are linked with each other,
``nodes`` for how many memory nodes they are spread over, and ``faults``. The file is read anew at every measurement, so that a
test may let GPUs fill, fail or vanish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gpustack.plugin import (
    DeviceExposure,
    GpuDetector,
    GpuDevice,
    GpuUsage,
    Host,
    Option,
    PluginError,
    Verdict,
    hookimpl,
)
from gpustack.settings.kinds import AbsolutePath
from gpustack.testing.fakes.described import described
from gpustack.testing.fakes.sizes import parse_size

#: What engines call a vendor's devices, and how a process is shown some of them.
_VENDORS = {
    "nvidia": ("cuda", "CUDA_VISIBLE_DEVICES"),
    "amd": ("rocm", "ROCR_VISIBLE_DEVICES"),
    "ascend": ("npu", "ASCEND_RT_VISIBLE_DEVICES"),
    "apple": ("mps", "FAKE_APPLE_VISIBLE_DEVICES"),
}

Size = Annotated[int, BeforeValidator(parse_size)]


def _vendor(name: str) -> str:
    if name not in _VENDORS:
        raise ValueError(f"give one of {', '.join(_VENDORS)}")
    return name


class Entry(BaseModel):
    """One line of the file: a number of equal devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    memory: Size = Field(gt=0)
    vendor: Annotated[str, AfterValidator(_vendor)] = "nvidia"
    count: int = Field(default=1, ge=0, le=1024)
    used: Size = 0
    utilization: float = Field(default=0.0, ge=0, le=100)
    temperature: float = 40.0
    power: float = Field(default=0.0, ge=0)
    uuid: str = ""
    type: str = ""
    driver_version: str = "0.0"
    runtime_version: str = ""
    compute_capability: str = ""
    linked: int = Field(default=0, ge=0)
    nodes: int = Field(default=0, ge=0)
    faults: tuple[str, ...] = ()


class _Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class FakeGpu:
    """A device and how it is used now."""

    device: GpuDevice
    usage: GpuUsage


def read_fleet(path: Path) -> tuple[FakeGpu, ...]:
    """Return the devices that the file describes, in its order. Raises PluginError with one line."""
    return tuple(devices_of(described(path, _Fleet).devices))


def devices_of(entries: Iterable[Entry]) -> Iterable[FakeGpu]:
    """Return the devices of these entries, numbered in their order."""
    index = links = 0
    for entry in entries:
        before = links
        for number in range(entry.count):
            single = entry.uuid if entry.count == 1 else f"{entry.uuid}-{number}"
            yield FakeGpu(
                device=GpuDevice(
                    uuid=single if entry.uuid else f"FAKE-{entry.vendor}-{index}",
                    index=index,
                    vendor=entry.vendor,
                    name=entry.name,
                    memory_total=entry.memory,
                    type=entry.type or _VENDORS[entry.vendor][0],
                    driver_version=entry.driver_version,
                    runtime_version=entry.runtime_version,
                    compute_capability=entry.compute_capability,
                    numa_node=number * entry.nodes // entry.count if entry.nodes else None,
                    link_group=f"link{before + number // entry.linked}" if entry.linked > 1 else "",
                ),
                usage=GpuUsage(
                    memory_used=min(entry.used, entry.memory),
                    utilization=entry.utilization,
                    temperature=entry.temperature,
                    power_watts=entry.power,
                    faults=entry.faults,
                ),
            )
            index += 1
        if entry.linked > 1:
            links += -(-entry.count // entry.linked)


def _fleet_file(path: Path | None) -> Path | None:
    """Read it once, so that a mistake in it is told at the start."""
    if path is not None:
        try:
            read_fleet(path)
        except PluginError as error:
            raise ValueError(str(error)) from error
    return path


class FakeGpuSettings(BaseModel):
    """Where the fleet is described."""

    model_config = ConfigDict(frozen=True)

    fake_gpus_file: Annotated[
        AbsolutePath | None,
        AfterValidator(_fleet_file),
        Option(
            group="Worker",
            value="PATH",
            help="For tests: the YAML file that describes the GPUs of this machine.",
        ),
    ] = None


class _FakeDetector(GpuDetector[FakeGpuSettings]):
    """The fleet's devices of one vendor."""

    settings_type = FakeGpuSettings
    variable: ClassVar[str]

    def __init__(self, settings: FakeGpuSettings, host: Host) -> None:
        super().__init__(settings, host)
        self._file = settings.fake_gpus_file

    def present(self) -> Verdict:
        """Agree when the file has devices of the vendor."""
        if self._file is None:
            return Verdict.no("no --fake-gpus-file is given")
        try:
            found = self._fleet(self._file)
        except PluginError as error:
            return Verdict.no(str(error))
        return Verdict.yes() if found else Verdict.no(f"{self._file} has no {self.vendor} device")

    async def devices(self) -> Sequence[GpuDevice]:
        """Return those of the file now. Raises PluginError while it is wrong."""
        return [each.device for each in await self._read()]

    async def usage(self) -> Mapping[str, GpuUsage]:
        """Return what the file says now. Raises PluginError while it is wrong."""
        return {each.device.uuid: each.usage for each in await self._read()}

    def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        """Set the vendor's own variable to the indexes."""
        return DeviceExposure(env={self.variable: ",".join(str(each.index) for each in devices)})

    async def _read(self) -> list[FakeGpu]:
        return [] if self._file is None else await asyncio.to_thread(self._fleet, self._file)

    def _fleet(self, path: Path) -> list[FakeGpu]:
        return [each for each in read_fleet(path) if each.device.vendor == self.vendor]


#: A class for each vendor: a detector has one.
DETECTORS: tuple[type[GpuDetector[Any]], ...] = tuple(
    type(
        f"Fake{vendor.capitalize()}",
        (_FakeDetector,),
        {
            "__doc__": f"The fleet's devices of {vendor}.",
            "__module__": __name__,
            "name": f"fake-{vendor}",
            "vendor": vendor,
            "variable": variable,
        },
    )
    for vendor, (_, variable) in _VENDORS.items()
)


@hookimpl
def register_gpu_detectors() -> Iterable[type[GpuDetector[Any]]]:
    """Return one for each vendor."""
    return DETECTORS
