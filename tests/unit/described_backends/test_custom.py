"""The backend that serves what people describe."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.plugin import (
    EstimateRequest,
    GpuDevice,
    Host,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    Refused,
    ResourceClaim,
)
from gpustack_backends import Custom

GIB = 1 << 30
MODEL = ModelFacts(format="unknown", path="/my models/m", weight_bytes=10 * GIB)
GPUS = tuple(
    GpuDevice(uuid=str(n), index=n + 4, vendor="v", name="n", memory_total=24 * GIB) for n in range(3)
)
CUSTOM = Custom(NoSettings(), Host(log=logging.getLogger(), data_dir=Path("/d"), bin_dir=Path("/b")))
LAUNCH = LaunchRequest(
    instance_name="m-abcde", model_name="m", model=MODEL, command="/opt/serve", version="7", host="127.0.0.1",
    port=40000, model_path=MODEL.path, devices=GPUS[:2],
)  # fmt: skip


def ask(*parameters: str, gpus: int = 0) -> list[ResourceClaim]:
    request = EstimateRequest(model=MODEL, version="7", parameters=parameters, devices=GPUS[:gpus])
    return list(CUSTOM.ways(request))


def test_every_placeholder_is_filled_in() -> None:
    command = (
        "serve {{model_path}} {{model_name}} {{host}}:{{port}} {{worker_ip}} {{gpu_count}} {{gpu_ids}} {{version}} "
        "{{instance_name}}"
    )

    plan = CUSTOM.launch(
        replace(LAUNCH, run_command=command, parameters=("--as={{model_name}}", "--tpl={{ x }}"))
    )

    assert plan.argv == (
        *("/opt/serve", "/my models/m", "m", "127.0.0.1:40000", "127.0.0.1", "2", "0,1", "7", "m-abcde"),
        *("--as=m", "--tpl={{ x }}"),
    )
    assert plan.ready.path == "/health"


def test_an_unknown_placeholder_is_refused() -> None:
    with pytest.raises(
        Refused, match=r"run_command: there is no placeholder \{\{prot\}\}; the known ones are"
    ):
        CUSTOM.launch(replace(LAUNCH, run_command="serve {{prot}}"))


def test_memory_is_the_weights_and_a_fifth_unless_it_is_said() -> None:
    in_all = 12 * GIB + GIB // 2

    assert ask() == [ResourceClaim(ram=in_all)]
    assert ask(gpus=1) == [ResourceClaim(ram=GIB // 2, vram=in_all, gpus=1)]
    assert [each.gpus for each in ask(gpus=3)] == [1, 2, 3]
    assert ask("--gpustack-ram=2GiB") == [ResourceClaim(ram=2 * GIB)]
    assert ask("--gpustack-gpus", "0", gpus=3) == [ResourceClaim(ram=in_all)]
    assert ask("--gpustack-vram 30GiB", "--gpustack-gpus=2", gpus=3) == [
        ResourceClaim(ram=GIB // 2, vram=30 * GIB, gpus=2)
    ]


def test_what_is_for_us_is_not_for_the_engine() -> None:
    parameters = (
        "--gpustack-vram=1GiB",
        "--a",
        "--gpustack-gpus",
        "1",
        "--gpustack-ram 1GiB",
        "--b=--gpustack-ram",
    )

    plan = CUSTOM.launch(replace(LAUNCH, run_command="serve", parameters=parameters))

    assert plan.argv == ("/opt/serve", "--a", "--b=--gpustack-ram")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (("--gpustack-vram",), "--gpustack-vram needs a value, as in --gpustack-vram=8GiB"),
        (("--gpustack-ram=lots",), "--gpustack-ram: 'lots' is no size; give one such as 80GiB"),
        (("--gpustack-gpus=4",), "--gpustack-gpus=4, and there are 3 GPUs"),
        (("--gpustack-gpus=many",), "--gpustack-gpus needs a number of GPUs from 0 to 64, not 'many'"),
        (
            ("--gpustack-gpus=0", "--gpustack-vram=1GiB"),
            "--gpustack-gpus=0 and --gpustack-vram contradict each other",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(parameters: tuple[str, ...], says: str) -> None:
    with pytest.raises(Refused) as caught:
        ask(*parameters, gpus=3)

    assert str(caught.value).startswith(says)
