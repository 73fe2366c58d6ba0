"""``resources``: what a machine has, in the place of what is detected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.kit.errors import SettingsError
from gpustack.settings.load import load
from gpustack.settings.load import read as read_all
from gpustack.settings.model import Settings
from gpustack.settings.resources import Resources

GIB = 1 << 30

FULL = """
resources:
  cpu: {total: 32}
  memory: {total: 128GiB, used: 4GiB, is_unified_memory: false}
  swap: {total: 0}
  gpu_devices:
    - name: NVIDIA L4
      vendor: NVIDIA
      index: 0
      memory: {total: 24GiB}
    - {name: B, vendor: acme, index: 3, uuid: acme-b, type: acme, memory: {total: 1073741824, used: 5}, numa_node: 1,
       core: {total: 100}, power: 72.5, compute_capability: "8.9", arch_family: Ada-Lovelace, link_group: all}
"""


def read(file: Path, text: str) -> Resources | None:
    file.write_text(text)
    return load({"config_file": str(file)}).resources


def test_everything_that_can_be_described(file: Path) -> None:
    found = read(file, FULL)

    assert found is not None
    assert (found.cpu, found.memory, found.swap) != (None, None, None)
    first, second = found.gpu_devices or ()
    assert (first.vendor, first.memory.total, first.memory.used) == ("nvidia", 24 * GIB, None)
    assert (second.memory.total, second.memory.used, second.power, second.compute_capability) == (
        GIB,
        5,
        72.5,
        "8.9",
    )


def test_it_survives_the_way_to_the_worker(file: Path) -> None:
    file.write_text(FULL)
    settings = load({"config_file": str(file)})
    assert Settings.model_validate(json.loads(settings.model_dump_json())).resources == settings.resources


def test_nothing_is_described_unless_somebody_does(file: Path) -> None:
    assert load({}).resources is None
    assert read(file, "resources:\n") is None
    assert read(file, "resources: {gpu_devices: []}\n") == Resources(gpu_devices=())


def test_the_documented_example_can_be_used(file: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")
    [example] = re.findall(r"^```yaml\n(resources:.*?)^```$", page, re.MULTILINE | re.DOTALL)

    found = read(file, example)

    assert found is not None
    assert [(each.vendor, each.index, each.memory.used) for each in found.gpu_devices or ()] == [
        ("nvidia", 0, None),
        ("nvidia", 1, 4 * GIB),
    ]


def test_a_variable_has_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSTACK_RESOURCES", '{"cpu": {"total": 3}}')
    found = load({}).resources
    assert found == Resources.model_validate({"cpu": {"total": 3}})
    monkeypatch.setenv("GPUSTACK_RESOURCES", '{"cpu": {"total": 0}}')
    with pytest.raises(SettingsError, match=r"^GPUSTACK_RESOURCES .*: cpu.total: give 1 or more$"):
        load({})


WRONG = {
    "memory: {total: 24GiB}": (
        "memory: {total: lots}",
        "memory.total",
        10,
        " 'lots': give a number of bytes",
    ),
    "index: 0": ("index: yes", "index", 9, " 'yes': give a whole number"),
    "name: NVIDIA L4": ("name: ''", "name", 7, " '': give a name"),
    "      vendor: NVIDIA\n": ("      vendors: A\n", "vendors", 8, " 'A': there is no such key"),
    "      memory: {total: 24GiB}\n": ("", "memory", 7, ": this is missing"),
    "memory: {total: 24GiB}\n": (
        "memory: {total: 0}\n",
        "memory.total",
        10,
        " '0': give a size such as 24GiB",
    ),
}


@pytest.mark.parametrize("right", WRONG)
def test_a_wrong_description_is_a_line_with_file_and_line(file: Path, right: str) -> None:
    wrong, where, line, says = WRONG[right]
    assert right in FULL
    with pytest.raises(SettingsError) as told:
        read(file, FULL.replace(right, wrong, 1))

    lines = told.value.message.splitlines()
    begins = f"resources.gpu_devices.0.{where} in {file}, line {line}{says}"
    assert any(each.startswith(begins) for each in lines), lines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resources: 5", "resources in FILE, line 1 '5': give an object such as"),
        ("resources: {gpus: []}", "resources.gpus in FILE, line 1 '[]': there is no such key"),
        ("resources: {gpu_devices: 3}", "resources.gpu_devices in FILE, line 1 '3': "),
        (
            FULL.replace("index: 3", "index: 0"),
            "resources.gpu_devices in FILE, line 6",
        ),
        (
            "resources: {gpu_devices: {name: L4}}",
            """resources.gpu_devices in FILE, line 1 '{"name": "L4"}': give a list such as [{""",
        ),
        (
            "resources: {gpu_devices: [L4]}",
            "resources.gpu_devices.0 in FILE, line 1 'L4': give an object such as {",
        ),
        (
            "resources: {cpu: 3}",
            """resources.cpu in FILE, line 1 '3': give an object such as {"total": 32}""",
        ),
        (
            "resources: {memory: 3GiB}",
            """resources.memory in FILE, line 1 '3GiB': give an object such as {"total": "24GiB"}""",
        ),
        (
            "resources:\n  memory: {total: 1GiB,\n    used: 2GiB}",
            """resources.memory in FILE, line 2 '{"total": "1GiB", "used": "2GiB"}': used is more than total; give""",
        ),
        (
            FULL.replace("used: 5}", "used: 2GiB}"),
            "resources.gpu_devices.1.memory in FILE, line 11 '{",
        ),
        (
            FULL.replace("uuid: acme-b", "uuid: 'GPU-a,GPU-b'"),
            "resources.gpu_devices.1.uuid in FILE, line 11 'GPU-a,GPU-b': give one uuid, without commas and",
        ),
    ],
)
def test_what_is_no_description_at_all(file: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as told:
        read(file, text)
    [line] = told.value.message.splitlines()
    assert line.startswith(says.replace("FILE", str(file)))


def test_two_of_one_number_are_named(file: Path) -> None:
    with pytest.raises(SettingsError, match="number 0 and number 1 both have the index 0; give each its own"):
        read(file, FULL.replace("index: 3", "index: 0"))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cpu", "memory", "gpu_devices", "total", "name", "vendor", "index", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(anything)
def test_whatever_is_given_is_read_or_refused_in_lines(value: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUSTACK_RESOURCES", json.dumps({"gpu_devices": [value], "cpu": value}))
        problems = read_all({}).problems
    assert all(line.startswith("GPUSTACK_RESOURCES") and "\n" not in line for line in problems)
