"""The image that vLLM is run from in a container."""

import logging
from pathlib import Path

import pytest

from gpustack.plugin import ComesAsImage, Host, NoSettings, Platform, Refused
from gpustack_backends.vllm import Vllm


@pytest.fixture
def vllm() -> Vllm:
    return Vllm(NoSettings(), Host(log=logging.getLogger(), data_dir=Path(), bin_dir=Path()))


def test_it_is_by_version_and_device(vllm: Vllm) -> None:
    assert isinstance(vllm, ComesAsImage)
    found = vllm.image("0.32.0", Platform(system="linux", machine="x86_64", accelerators=("cuda",)))
    assert (found.image, found.command) == ("vllm/vllm-openai:v0.32.0", "vllm")


@pytest.mark.parametrize("accelerators", [(), ("rocm",)])
def test_other_devices_have_none_that_follows(vllm: Vllm, accelerators: tuple[str, ...]) -> None:
    with pytest.raises(Refused, match="name one by image_name"):
        vllm.image("0.32.0", Platform(system="linux", machine="x86_64", accelerators=accelerators))
