"""The stand-in of pynvml is like the real one in all that is used of it."""

import inspect
from pathlib import Path
from typing import Any

import pynvml as real
import pytest

from gpustack.plugin import PluginError
from gpustack.testing.fakes.nvml import CONSTANTS, ERRORS, fake_nvml, module


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    file = tmp_path / "nvml.yaml"
    file.write_text("devices: [{name: A, memory: 1GiB}]")
    return module(file)


def test_its_calls_have_the_parameters_of_the_real_ones(fake: Any) -> None:
    calls = [name for name in vars(fake) if name.startswith("nvml") and callable(getattr(fake, name))]
    assert len(calls) > 30
    for name in calls:
        ours = [(each.name, each.kind) for each in inspect.signature(getattr(fake, name)).parameters.values()]
        theirs = [
            (each.name, each.kind) for each in inspect.signature(getattr(real, name)).parameters.values()
        ]
        assert ours == theirs, name


def test_its_constants_and_errors_are_the_real_ones(fake: Any) -> None:
    assert {name: getattr(real, name) for name in CONSTANTS} == CONSTANTS
    for code, ours in ERRORS.items():
        theirs = real.NVMLError(code)
        assert type(theirs).__name__ == ours.__name__
        assert (theirs.value, str(theirs)) == (ours(code).value, str(ours(code)))
        assert issubclass(getattr(fake, ours.__name__), fake.NVMLError)


def test_before_it_is_opened_nothing_works(fake: Any) -> None:
    with pytest.raises(fake.NVMLError_Uninitialized):
        fake.nvmlDeviceGetCount()
    fake.nvmlInit()
    assert fake.nvmlDeviceGetCount() == 1
    with pytest.raises(fake.NVMLError_InvalidArgument):
        fake.nvmlDeviceGetHandleByIndex(1)


def test_the_real_one_is_there_again_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "nvml.yaml"
    file.write_text("")
    with fake_nvml(file) as fake:
        import pynvml

        assert pynvml is fake
    import pynvml

    assert pynvml is real


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("devices: {", "line 1: this is no YAML"),
        ("devices: [{name: A}]", "devices.0.memory: field required"),
        ("fails: {nvmlNothing: hang}", "fails: nvmlNothing is no call that there is here"),
        ("fails: {nvmlInit: Sulks}", "fails: sulks"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "nvml.yaml"
    file.write_text(text)
    with pytest.raises(PluginError) as told:
        module(file)
    assert says.lower() in str(told.value).lower()
    assert "\n" not in str(told.value)
