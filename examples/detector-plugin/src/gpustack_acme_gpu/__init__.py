"""Acme Gpu: finds the accelerators of one vendor, here in a JSON file that their driver keeps."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from gpustack.plugin import (
    DeviceExposure,
    GpuDetector,
    GpuDevice,
    GpuUsage,
    Option,
    TryAgain,
    Verdict,
    hookimpl,
)

#: The version of GPUStack's plugin API that this was written for.
plugin_api_version = "1.0"


class AcmeGpuSettings(BaseModel):
    """An option of `gpustack start`, on workers."""

    acme_gpu_devices: Annotated[
        str, Option(help="File with the acme-gpu devices.", group="Worker", value="PATH")
    ] = "/run/acme-gpu/devices.json"


class AcmeGpuDetector(GpuDetector[AcmeGpuSettings]):
    """Reads what the driver says at every call: devices may come and go."""

    name = "acme-gpu"
    settings_type = AcmeGpuSettings
    vendor = "acme-gpu"

    def present(self) -> Verdict:
        path = Path(self.settings.acme_gpu_devices)
        return Verdict.yes() if path.is_file() else Verdict.no(f"there is no {path}")

    async def devices(self) -> Sequence[GpuDevice]:
        found = [
            GpuDevice(
                uuid=each["uuid"],
                index=each["index"],
                vendor=self.vendor,
                name=each["name"],
                memory_total=each["memory_total"],
                type="acme-gpu",
            )
            for each in await asyncio.to_thread(self._read)
        ]
        return sorted(found, key=lambda device: device.index)

    async def usage(self) -> Mapping[str, GpuUsage]:
        return {
            each["uuid"]: GpuUsage(memory_used=each["memory_used"], utilization=each.get("utilization", 0.0))
            for each in await asyncio.to_thread(self._read)
            if "memory_used" in each
        }

    def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        # Set for no device too: an engine that sees no variable takes them all.
        shown = ",".join(str(each.index) for each in devices)
        return DeviceExposure(env={"ACME_GPU_VISIBLE_DEVICES": shown})

    def _read(self) -> list[dict[str, Any]]:
        path = Path(self.settings.acme_gpu_devices)
        try:
            found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TryAgain(f"the list of acme-gpu devices cannot be read: {error}", after=10) from error
        return found


@hookimpl
def register_gpu_detectors() -> list[type[AcmeGpuDetector]]:
    """Bring the detector."""
    return [AcmeGpuDetector]
