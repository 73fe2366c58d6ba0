"""Room on a GPU that another program takes or gives back is told with the next heartbeat, not with the next figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gpustack.extensions import Registered
from gpustack.plugin import DeviceExposure, GpuDetector, GpuDevice, GpuUsage, NoSettings, Verdict

GIB = 1 << 30


class OneGpu(GpuDetector[NoSettings]):
    """A GPU of 80 GiB, of which others use what the test says."""

    name = "one"
    settings_type = NoSettings
    vendor = "one"
    used = GIB

    def present(self) -> Verdict:
        return Verdict.yes()

    async def devices(self) -> Sequence[GpuDevice]:
        return [
            GpuDevice(uuid="GPU-a", index=0, vendor="one", name="One", memory_total=80 * GIB, type="cuda")
        ]

    async def usage(self) -> Mapping[str, GpuUsage]:
        return {"GPU-a": GpuUsage(memory_used=self.used)}

    def expose(self, devices: Sequence[GpuDevice]) -> DeviceExposure:
        return DeviceExposure()


@pytest.fixture
def figures(fleet: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the server was told of the GPU's use, one number for each heartbeat that had figures."""
    monkeypatch.setattr(OneGpu, "used", GIB)
    fleet.catalogue.gpu_detectors["one"] = Registered(
        cls=OneGpu, plugin="one", distribution="one", version="1"
    )
    return lambda: [
        beat["status"]["gpu_devices"][0]["memory"]["used"] for beat in server.beats if "status" in beat
    ]


async def test_what_others_took_is_told_at_once(
    fleet: Any, server: Any, until: Any, figures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.start(heartbeat=0.5)
    await until(figures)
    # Figures come with every third from here on.
    server.beats.clear()
    monkeypatch.setattr(OneGpu, "used", 60 * GIB)

    await until(figures)

    assert figures() == [60 * GIB]
    assert len(server.beats) <= 2


async def test_what_hardly_changed_waits(
    fleet: Any, server: Any, until: Any, figures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.start(heartbeat=0.2)
    await until(figures)
    server.beats.clear()
    monkeypatch.setattr(OneGpu, "used", GIB + (GIB >> 4))

    await until(figures)

    assert len(server.beats) == 3
