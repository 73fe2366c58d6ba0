"""Our detectors keep their contracts."""

from pathlib import Path

import pytest
from gpustack_system import PsutilDetector

from gpustack.testing import GpuDetectorSuite, SystemDetectorSuite
from gpustack.testing.fakes.gpus import DETECTORS, FakeGpuSettings

FLEET = """
devices:
  - {name: NVIDIA H100, memory: 80GiB, count: 3, used: 500MiB, utilization: 12.5}
  - {name: AMD MI300X, vendor: amd, memory: 192GiB, count: 2}
  - {name: Ascend 910B, vendor: ascend, memory: 64 GiB, used: 64GiB}
  - {name: Apple M4, vendor: apple, memory: 32GB}
  - {name: NVIDIA L4, memory: 24GiB, type: cuda, uuid: GPU-l4, power: 72}
"""
NVIDIA, AMD, ASCEND, APPLE = DETECTORS


class TestPsutil(SystemDetectorSuite):
    extension = PsutilDetector
    must_be_present = True


class OfAFleet(GpuDetectorSuite):
    must_be_present = True

    @pytest.fixture
    def settings(self, tmp_path: Path) -> FakeGpuSettings:
        file = tmp_path / "fleet.yaml"
        file.write_text(FLEET)
        return FakeGpuSettings(fake_gpus_file=file)


class TestFakeNvidia(OfAFleet):
    extension = NVIDIA


class TestFakeAmd(OfAFleet):
    extension = AMD


class TestFakeAscend(OfAFleet):
    extension = ASCEND


class TestFakeApple(OfAFleet):
    extension = APPLE


class TestWithoutAFile(GpuDetectorSuite):
    extension = NVIDIA
