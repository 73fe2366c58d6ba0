"""AcmeGpuDetector keeps the contract, on a machine that seems to have two devices."""

import asyncio
import json
import logging
from pathlib import Path

import pytest
from gpustack_acme_gpu import AcmeGpuDetector, AcmeGpuSettings

from gpustack.plugin import Host
from gpustack.testing import GpuDetectorSuite

DEVICES = [
    {"uuid": "b", "index": 1, "name": "Acme Gpu 2", "memory_total": 8 << 30},
    {"uuid": "a", "index": 0, "name": "Acme Gpu 1", "memory_total": 8 << 30, "memory_used": 1 << 30},
]


def a_driver(folder: Path) -> AcmeGpuSettings:
    """Return settings that lead to a driver with two devices."""
    path = folder / "devices.json"
    path.write_text(json.dumps(DEVICES), encoding="utf-8")
    return AcmeGpuSettings(acme_gpu_devices=str(path))


class TestContract(GpuDetectorSuite):
    """What GPUStack expects of every detector."""

    extension = AcmeGpuDetector
    must_be_present = True

    @pytest.fixture
    def settings(self, tmp_path: Path) -> AcmeGpuSettings:
        """Those of a machine with devices."""
        return a_driver(tmp_path)


def test_a_device_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    host = Host(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    usage = asyncio.run(AcmeGpuDetector(a_driver(tmp_path), host).usage())
    assert {uuid: each.memory_used for uuid, each in usage.items()} == {"a": 1 << 30}
