"""Workers that are not there are what a YAML text describes, and what a server and the scheduler take for workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import PluginError
from gpustack.schemas import WorkerPublic, WorkerRegistration
from gpustack.testing.fleet import FakeWorker, fleet
from support.reconcile import a_state

GIB = 1 << 30

TEXT = """
workers:
  - name: big
    count: 3
    cores: 128
    ram: 1TiB
    labels: {zone: a}
    backends: [vllm]
    gpus:
      - {name: NVIDIA H100, memory: 80GiB, count: 8, linked: 4, nodes: 2}
      - {name: NVIDIA L4, memory: 24GiB, used: 5GiB, faults: [it is hot]}
  - {name: plain, used: 1GiB, machine: aarch64}
"""


def test_a_fleet_is_described(gpustack_fleet: Callable[[Path | str], tuple[FakeWorker, ...]]) -> None:
    workers = gpustack_fleet(TEXT)

    assert [each.name for each in workers] == ["big-0", "big-1", "big-2", "plain"]
    assert len({each.address for each in workers}) == 4
    big, plain = workers[0].status, workers[3].status
    assert (big.cpu.total, big.memory.total, len(big.gpu_devices)) == (128, 1 << 40, 9)
    assert [each.link_group for each in big.gpu_devices] == [*["link0"] * 4, *["link1"] * 4, ""]
    assert [each.numa_node for each in big.gpu_devices] == [0, 0, 0, 0, 1, 1, 1, 1, None]
    assert big.gpu_devices[8].faults == ["it is hot"]
    assert (plain.memory.used, plain.gpu_devices) == (GIB, [])
    assert plain.kernel == {"name": "Linux", "architecture": "aarch64"}
    uuids = [gpu.uuid for each in workers for gpu in each.status.gpu_devices]
    assert len(set(uuids)) == len(uuids) == 27


def test_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(TEXT)
    assert fleet(file) == fleet(TEXT)


def test_the_scheduler_sees_them_as_workers() -> None:
    public = [worker.public(number) for number, worker in enumerate(fleet(TEXT), 1)]

    rooms = a_state(workers=public).snapshot().rooms

    first = rooms[1].worker
    assert (first.name, first.backends, first.ram_total) == ("big-0", {"vllm"}, 1 << 40)
    assert (first.labels["zone"], first.vram_reserved) == ("a", GIB)
    # The one that is hot takes nothing.
    assert [gpu.total // GIB for gpu in first.gpus] == [80] * 8
    assert rooms[4].ram_free == 61 * GIB


@given(st.integers(1, 100), st.integers(0, 60), st.integers(0, 8))
def test_any_number_of_any_size(letters: int, count: int, gpus: int) -> None:
    name = "w" * letters
    found = fleet(
        f"workers: [{{name: {name}, count: {count}, gpus: [{{name: A, memory: 1GiB, count: {gpus}}}]}}]"
    )

    assert [each.number for each in found] == list(range(count))
    for each in found:
        said = each.registration()
        assert WorkerRegistration.model_validate_json(said.model_dump_json()) == said
        public = each.public(each.number + 1)
        assert WorkerPublic.model_validate_json(public.model_dump_json()) == public
        assert len(public.status.gpu_devices) == gpus


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers: {", "the fleet, line 1: this is no YAML"),
        ("workers: [{ram: 1GiB}]", "the fleet: workers.0.name: field required"),
        (
            "workers: [{name: a, ram: much}]",
            "the fleet: workers.0.ram: 'much' is no size; give one such as 80GiB",
        ),
        ("workers: [{name: a}, {name: a}]", "the fleet: workers: two workers are called a; give each entry"),
        (
            "workers: [{name: a-1}, {name: a, count: 2}]",
            "the fleet: workers: two workers are called a-1; give each entry a name of its own",
        ),
        ("workers: [{name: a, gpus: [{name: x}]}]", "the fleet: workers.0.gpus.0.memory: field required"),
    ],
)
def test_a_wrong_one_is_one_line(text: str, says: str) -> None:
    with pytest.raises(PluginError) as told:
        fleet(text)
    assert str(told.value).startswith(says)
    assert "\n" not in str(told.value)
