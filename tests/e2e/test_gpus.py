"""A machine with NVIDIA GPUs, as a stand-in of their driver has them, and one whose GPUs are described in the settings."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from gpustack.testing import fakes
from gpustack.testing.fakes import nvml
from gpustack.testing.server import RunningServer, running_gpustack

pytestmark = pytest.mark.xdist_group("e2e-gpus")

GIB = 1 << 30
LINKED = """
driver: 570.86.15
cuda: "12.8"
nvlink: [[0, 1]]
devices:
  - {name: NVIDIA H100, memory: 80GiB, uuid: GPU-a, used: USED, numa: 0, processes: [PROCESS]}
  - {name: NVIDIA H100, memory: 80GiB, uuid: GPU-b, used: THEIRS, numa: 1, power: 91.5}
"""


def linked_gpus(used: str = "1GiB", process: str = "", theirs: str = "0") -> str:
    return LINKED.replace("USED", used).replace("PROCESS", process).replace("THEIRS", theirs)


DESCRIBED = """
resources:
  memory: {total: 64GiB, used: 1GiB}
  gpu_devices:
    - {name: NVIDIA L40S, vendor: nvidia, index: 2, uuid: GPU-described, memory: {total: 48GiB, used: 2GiB}}
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    return tmp_path / "nvml.yaml"


@pytest.fixture
def linked(place: Path, tmp_path: Path, driver: Path) -> Iterator[RunningServer]:
    driver.write_text(linked_gpus())
    paths = (fakes.path("fake-engine"), nvml.shim(tmp_path / "shim", driver))
    env = {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    with running_gpustack(place / uuid4().hex[:8], env=env) as server:
        yield server


def gpus(server: RunningServer) -> list[dict[str, Any]]:
    with server.client() as client:
        found: list[dict[str, Any]] = client.get("/v2/gpu-devices").json()["items"]
    return found


def instances(server: RunningServer) -> list[dict[str, Any]]:
    with server.client() as client:
        found: list[dict[str, Any]] = client.get("/v2/model-instances").json()["items"]
    return found


def instance_of(server: RunningServer, model: str) -> dict[str, Any]:
    [instance] = (each for each in instances(server) if each["model_name"] == model)
    return instance


def until(
    look: Callable[[], dict[str, Any]], is_so: Callable[[dict[str, Any]], bool], seconds: float = 60
) -> dict[str, Any]:
    """Return what is seen once it is so."""
    deadline = time.monotonic() + seconds
    while not is_so(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    return seen


@pytest.mark.slow
def test_detected_gpus_are_placed_on_shown_and_told_apart_by_use(
    linked: RunningServer, driver: Path, tmp_path: Path
) -> None:
    first, second = gpus(linked)
    assert (first["name"], first["uuid"], first["type"]) == ("NVIDIA H100", "GPU-a", "cuda")
    assert (first["driver_version"], first["runtime_version"]) == ("570.86.15", "12.8")
    assert (first["memory"]["total"], first["memory"]["used"]) == (80 * GIB, GIB)
    assert first["link_group"] == second["link_group"] != ""
    assert (first["numa_node"], second["numa_node"], second["power_used"]) == (0, 1, 91.5)

    linked.deploy(
        fakes.a_model(tmp_path),
        "wide",
        backend="fake",
        backend_parameters=["--claim-vram=120GiB"],
        timeout=120,
    )
    instance = instance_of(linked, "wide")
    assert instance["gpu_indexes"] == [0, 1]
    environment = Path(f"/proc/{instance['pid']}/environ").read_text().split("\0")
    assert "CUDA_VISIBLE_DEVICES=GPU-a,GPU-b" in environment

    # Our engine now takes 45 GiB of the 50 that are used.
    process = f"{{pid: {instance['pid']}, memory: 45GiB}}"
    driver.write_text(linked_gpus("50GiB", process, theirs="30GiB"))
    found = until(lambda: gpus(linked)[0], lambda gpu: gpu["memory"]["used"] == 50 * GIB)
    assert found["memory"]["others"] == 5 * GIB
    assert found["processes"] == [{"pid": instance["pid"], "memory": 45 * GIB, "instance_id": instance["id"]}]
    assert "50.0 GiB of 80.0 GiB  5.0 GiB" in linked.cli("gpus").stdout

    # Of the second one 19 GiB are not claimed. While somebody else has them, a model has to do without.
    wish = {"backend": "fake", "backend_parameters": ["--claim-vram=16GiB"], "timeout": 120}
    linked.deploy(fakes.a_model(tmp_path / "early"), "early", **wish)
    assert instance_of(linked, "early")["gpu_indexes"] == []
    driver.write_text(linked_gpus("50GiB", process, theirs="1GiB"))
    until(lambda: gpus(linked)[1], lambda gpu: gpu["memory"]["used"] == GIB)
    linked.deploy(fakes.a_model(tmp_path / "late"), "late", **wish)
    assert instance_of(linked, "late")["gpu_indexes"] == [1]


@pytest.mark.slow
def test_a_model_keeps_to_the_gpu_that_was_chosen_and_moves_with_the_choice(
    linked: RunningServer, tmp_path: Path
) -> None:
    first, second = (each["id"] for each in gpus(linked))
    file = str(fakes.a_model(tmp_path))
    engine = ("--backend", "fake", "-p", "--claim-vram=10GiB")
    linked.cli("deploy", file, "--name", "picked", *engine, "--gpu", second, "--timeout", "120")
    assert visible_to(instance_of(linked, "picked")) == "GPU-b"

    linked.cli("update", "picked", "--gpu", first, "--timeout", "120")
    # The old one may still drain.
    until(
        lambda: {"on": [each["gpu_indexes"] for each in instances(linked)]}, lambda seen: seen["on"] == [[0]]
    )
    assert visible_to(instance_of(linked, "picked")) == "GPU-a"


def visible_to(instance: dict[str, Any]) -> str:
    environment = Path(f"/proc/{instance['pid']}/environ").read_text().split("\0")
    return next(each for each in environment if each.startswith("CUDA_VISIBLE_DEVICES=")).partition("=")[2]


def test_described_gpus_are_those_of_the_machine(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(DESCRIBED)
    env = {"PYTHONPATH": str(fakes.path("fake-engine"))}
    with running_gpustack(place / "described", "--config-file", str(file), env=env) as server:
        [gpu] = gpus(server)
        with server.client() as client:
            [worker] = client.get("/v2/workers").json()["items"]
        server.deploy(
            fakes.a_model(tmp_path),
            "small",
            backend="fake",
            backend_parameters=["--claim-vram=40GiB"],
            timeout=120,
        )
        instance = instance_of(server, "small")
        environment = Path(f"/proc/{instance['pid']}/environ").read_text().split("\0")
        listed = server.cli("gpus").stdout

    assert gpu["id"] == f"{worker['name']}:cuda:2"
    assert (gpu["name"], gpu["uuid"], gpu["memory"]["used"]) == ("NVIDIA L40S", "GPU-described", 2 * GIB)
    assert (worker["status"]["memory"]["total"], worker["status"]["memory"]["used"]) == (64 * GIB, GIB)
    assert instance["gpu_indexes"] == [2]
    # There is no driver, and the detector of the vendor shows the GPU all the same.
    assert "CUDA_VISIBLE_DEVICES=GPU-described" in environment
    assert "NVIDIA L40S" in listed
