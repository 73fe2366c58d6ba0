"""Our detectors keep their contracts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gpustack_gpu_nvidia import NvidiaDetector
from gpustack_system import PsutilDetector

from gpustack.testing import GpuDetectorSuite, SystemDetectorSuite
from gpustack.testing.fakes.gpus import DETECTORS, FakeGpuSettings
from gpustack.testing.fakes.nvml import fake_nvml

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


class OnADriver(GpuDetectorSuite):
    """With NVIDIA's driver, as a stand-in has it."""

    extension = NvidiaDetector
    must_be_present = True
    machine = ""

    @pytest.fixture(autouse=True)
    def driver(self, tmp_path: Path) -> Iterator[None]:
        file = tmp_path / "nvml.yaml"
        file.write_text(self.machine)
        with fake_nvml(file):
            yield


class TestNvidiaEightLinked(OnADriver):
    machine = """
nvlink: [[0, 1, 2, 3, 4, 5, 6, 7]]
devices:
  - {name: NVIDIA H100 80GB HBM3, memory: 80GiB, used: 1GiB, count: 4, numa: 0, place: [0, 0], utilization: 99}
  - {name: NVIDIA H100 80GB HBM3, memory: 80GiB, count: 4, numa: 1, place: [1, 1], power: 700}
"""


class TestNvidiaSliced(OnADriver):
    machine = """
devices:
  - {name: A100, memory: 40GiB, mig: [{name: 1g.5gb, memory: 5GiB, used: 5GiB}, {name: 2g.10gb, memory: 10GiB}]}
  - {name: A100, memory: 40GiB}
"""


class TestNvidiaInTrouble(OnADriver):
    machine = """
fails: {nvmlEventSetCreate: NotSupported, nvmlSystemGetCudaDriverVersion: FunctionNotFound}
devices:
  - {name: A, memory: 16GiB, lost: true}
  - {name: B, memory: 16GiB, xids: [79], fails: {nvmlDeviceGetMemoryInfo: GpuIsLost}}
  - {name: C, memory: 16GiB, fails: {nvmlDeviceGetTemperature: NotSupported, nvmlDeviceGetUtilizationRates: Unknown}}
  - {name: D, memory: 16GiB, unified: true}
"""


class TestNvidiaWithoutADriver(GpuDetectorSuite):
    extension = NvidiaDetector

    @pytest.fixture(autouse=True)
    def no_driver(self, tmp_path: Path) -> Iterator[None]:
        file = tmp_path / "nvml.yaml"
        file.write_text("fails: {nvmlInit: LibraryNotFound}")
        with fake_nvml(file):
            yield
