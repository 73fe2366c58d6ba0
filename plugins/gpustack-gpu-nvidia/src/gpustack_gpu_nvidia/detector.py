"""The detector."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module

from gpustack.plugin import (
    DeviceExposure,
    DeviceRequest,
    GpuDetector,
    GpuDevice,
    GpuUsage,
    Host,
    NoSettings,
    TryAgain,
    Verdict,
)
from gpustack_gpu_nvidia.calls import Calls, within
from gpustack_gpu_nvidia.nvml import VENDOR, Nvml, why_absent

#: Seconds that looking for a driver may take. Where the GPUs are asleep it takes longer to wake them.
_LOOK = 2.0
#: Seconds that a question may take; less than GPUStack gives a detector, so that it is told what hangs.
_LIMIT = 4.0
#: Seconds that closing may take.
_FAREWELL = 0.3


class NvidiaDetector(GpuDetector[NoSettings]):
    """Finds NVIDIA GPUs, and slices of them (MIG), as their driver tells through NVML."""

    name = "nvidia"
    settings_type = NoSettings
    vendor = VENDOR

    def __init__(self, settings: NoSettings, host: Host) -> None:
        super().__init__(settings, host)
        self._nvml = Nvml(host.log.warning)
        self._calls = Calls(_LIMIT)

    def present(self) -> Verdict:
        """Agree where NVML works, or takes long to say so; what is not there says so at once."""
        try:
            return within(_LOOK, _look)
        except TimeoutError:
            return Verdict.yes()
        except Exception as error:  # noqa: BLE001  # it never raises
            return Verdict.no(f"NVML cannot be loaded: {error}")

    async def devices(self) -> Sequence[GpuDevice]:
        """Return the GPUs by index, each sliced one as its slices. Raises TryAgain while the driver does not answer."""
        return await self._calls.run(self._nvml.devices)

    async def usage(self) -> Mapping[str, GpuUsage]:
        """Return the present use; a GPU that is lost is left out. Raises TryAgain while the driver does not answer."""
        return await self._calls.run(self._nvml.usage)

    def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        """Show them by uuid, which stays right whatever the order of the devices.

        Devices that somebody described without a uuid of CUDA's are shown by number, in the order of the PCI bus.
        """
        ids = tuple(each.uuid for each in devices)
        if not all(each.startswith(("GPU-", "MIG-")) for each in ids):
            ids = tuple(str(each.index) for each in devices)
        return DeviceExposure(
            env={"CUDA_VISIBLE_DEVICES": ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            requests=(DeviceRequest(driver="nvidia", ids=ids),) if ids else (),
        )

    async def __aexit__(self, *error: object) -> None:
        """Close NVML, as far as that goes without waiting for long."""
        with contextlib.suppress(TryAgain, TimeoutError):  # a driver that hangs was told of already
            async with asyncio.timeout(_FAREWELL):
                await self._calls.run(self._nvml.close)


def _look() -> Verdict:
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return Verdict.no(why_absent(error, nvml))
    return Verdict.yes() if count else Verdict.no("the NVIDIA driver finds no GPU")
