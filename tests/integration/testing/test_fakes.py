"""The fakes are plugins, and do what they say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpustack.plugin import (
    EstimateRequest,
    GatewayHost,
    LoginAttempt,
    LoginRefused,
    LoginReply,
    NoSettings,
    Platform,
    PluginError,
    RoutingTable,
    TryAgain,
    UsageRecord,
)
from gpustack.testing import fakes
from gpustack.testing.fakes.backend import FakeBackend
from gpustack.testing.fakes.gateway import URL, FakeGateway
from gpustack.testing.fakes.gpus import DETECTORS, FakeGpuSettings, read_fleet
from gpustack.testing.fakes.login import FakeLogin, FakeLoginSettings
from gpustack.testing.fakes.sizes import parse_size
from gpustack.testing.suites.samples import a_model, some_devices
from gpustack.worker.facts import read_facts

HOST = GatewayHost(log=logging.getLogger("test"), data_dir=Path("/nowhere"), bin_dir=Path("/nowhere"))
GIB = 1 << 30

# As plugins ---------------------------------------------------------------------------------------------------

LIST = """
import json
from gpustack.extensions import load_catalogue
found = load_catalogue()
print(json.dumps([{name: each.state for name, each in found.plugins.items() if name.startswith("fake")},
                  sorted([*found.backends, *found.gpu_detectors, *found.gateways, *found.auth_providers])]))
"""


def seen_with(folder: Path) -> tuple[dict[str, str], list[str]]:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", LIST], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plugins, names = json.loads(done.stdout)
    return plugins, names


def test_a_process_with_the_folder_on_its_path_has_them_as_plugins() -> None:
    plugins, names = seen_with(fakes.path())

    assert plugins == dict.fromkeys(fakes.PLUGINS, "loaded")
    assert {"fake", "fake-nvidia", "fake-amd"} <= set(names)


def test_only_those_that_were_asked_for(tmp_path: Path) -> None:
    plugins, _ = seen_with(fakes.path("fake-gateway", folder=tmp_path))

    assert plugins == {"fake-gateway": "loaded"}


def test_a_fake_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="there is no fake 'fake-nothing'; there are fake-gpus"):
        fakes.path("fake-nothing")


def test_the_folder_of_its_own_goes_with_the_process() -> None:
    code = "from gpustack.testing import fakes; print(fakes.path())"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.stdout.startswith("/")
    assert not Path(done.stdout.strip()).exists()


def test_a_worker_takes_the_made_up_model_for_one(tmp_path: Path) -> None:
    facts = read_facts(fakes.a_model(tmp_path))

    assert (facts.format, facts.categories, facts.layers) == ("safetensors", ("llm",), 2)


# GPUs ---------------------------------------------------------------------------------------------------------


def detector(vendor: str, file: Path | None) -> Any:
    (cls,) = (each for each in DETECTORS if each.vendor == vendor)
    return cls(FakeGpuSettings(fake_gpus_file=file), HOST)


def a_fleet(folder: Path, text: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


def test_a_fleet_is_what_its_file_says(tmp_path: Path) -> None:
    file = a_fleet(
        tmp_path,
        "devices:\n"
        "- {name: NVIDIA H100, memory: 80GiB, count: 2, used: 1.5 GiB, utilization: 30}\n"
        "- {name: AMD MI300X, vendor: amd, memory: 192GB, uuid: GPU-amd}\n",
    )

    nvidia, amd = detector("nvidia", file), detector("amd", file)
    devices = asyncio.run(nvidia.devices())
    usage = asyncio.run(nvidia.usage())
    (other,) = asyncio.run(amd.devices())

    assert [(each.uuid, each.index, each.type, each.memory_total) for each in devices] == [
        ("FAKE-nvidia-0", 0, "cuda", 80 * GIB),
        ("FAKE-nvidia-1", 1, "cuda", 80 * GIB),
    ]
    assert {each.memory_used for each in usage.values()} == {int(1.5 * GIB)}
    assert (other.uuid, other.index, other.type, other.memory_total) == ("GPU-amd", 2, "rocm", 192 * 10**9)
    assert nvidia.expose(devices[1:]).env == {"CUDA_VISIBLE_DEVICES": "1"}
    assert nvidia.expose([]).env == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_vendor_without_devices_is_not_present(tmp_path: Path) -> None:
    file = a_fleet(tmp_path, "devices: [{name: L4, memory: 24GiB}]")

    assert detector("nvidia", file).present().ok
    assert detector("amd", file).present().reason == f"{file} has no amd device"
    assert not detector("nvidia", None).present().ok


def test_a_fleet_changes_with_its_file(tmp_path: Path) -> None:
    file = a_fleet(tmp_path, "devices: [{name: L4, memory: 24GiB, count: 2}]")
    nvidia = detector("nvidia", file)

    before = asyncio.run(nvidia.devices())
    file.write_text("devices: [{name: L4, memory: 24GiB, used: 24GiB}]")
    after = asyncio.run(nvidia.usage())
    file.write_text("devices: {")

    assert len(before) == 2
    assert {name: each.memory_used for name, each in after.items()} == {"FAKE-nvidia-0": 24 * GIB}
    with pytest.raises(PluginError):
        asyncio.run(nvidia.devices())


WRONG = {
    "devices: {": "line 1: this is no YAML",
    "- a\n- b: c\n  d\n e": "this is no YAML",
    "[]": "the whole: ",
    "gpus: []": "gpus: extra inputs are not permitted",
    "devices: [{name: H100}]": "devices.0.memory: field required",
    "devices: [{name: H100, memory: lots}]": "devices.0.memory: 'lots' is no size; give one such as 80GiB",
    "devices: [{name: H100, memory: 0}]": "devices.0.memory: ",
    "devices: [{name: H100, memory: 1GiB, vendor: acme}]": "devices.0.vendor: give one of nvidia, amd, ascend, apple",
    "devices: [{name: H100, memory: 1GiB, count: -1}]": "devices.0.count: ",
    "devices: [{name: H100, memory: 1GiB, utilization: 120}]": "devices.0.utilization: ",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_wrong_file_is_told_in_one_line_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    file = a_fleet(tmp_path, text)

    with pytest.raises(PluginError) as told:
        read_fleet(file)
    assert str(told.value).startswith(f"{file}")
    assert says in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(ValidationError, match=r"fleet\.yaml"):
        FakeGpuSettings(fake_gpus_file=file)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(PluginError, match=r"/nowhere/fleet\.yaml cannot be read: No such file"):
        read_fleet(Path("/nowhere/fleet.yaml"))


def test_an_empty_file_is_a_machine_without_gpus(tmp_path: Path) -> None:
    assert read_fleet(a_fleet(tmp_path, "")) == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * GIB),
        ("80 gib", 80 * GIB),
        ("1.5KB", 1500),
        ("7", 7),
        (7, 7),
        ("2TiB", 2 << 40),
        ("3B", 3),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GiB", "1 GiBs", True, None, [1]])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


# The backend --------------------------------------------------------------------------------------------------

BACKEND = FakeBackend(NoSettings(), HOST)


@pytest.mark.parametrize(
    ("parameters", "gpus", "claim"),
    [
        (("--claim-ram=2GiB",), 0, (2 * GIB, 0, 0)),
        (("--claim-vram=100GiB",), 4, (64 << 20, 100 * GIB, 2)),
        (("--claim-vram=10GiB", "--claim-ram=1GiB"), 4, (GIB, 10 * GIB, 1)),
        (("--claim-vram=0",), 4, ((64 << 20) + 5 * GIB, 0, 0)),
        ((), 4, (64 << 20, 5 * GIB, 1)),
    ],
)
def test_what_is_reserved_can_be_told(
    parameters: tuple[str, ...], gpus: int, claim: tuple[int, int, int]
) -> None:
    request = EstimateRequest(
        model=a_model(), version="1.0.0", parameters=parameters, devices=some_devices(gpus)
    )

    found = BACKEND.estimate(request)

    assert (found.ram, found.vram, found.gpus) == claim


def test_its_wheel_is_one_and_says_its_version(tmp_path: Path) -> None:
    artifact = BACKEND.artifact("7.8.9", Platform(system="linux", machine="x86_64"))
    assert artifact.wheel is not None
    zipfile.ZipFile(io.BytesIO(artifact.wheel)).extractall(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "gpustack_fake_engine", *artifact.verify],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stdout == "fake-engine 7.8.9\n"


# Gateway and login --------------------------------------------------------------------------------------------


async def test_the_gateway_keeps_what_it_was_given() -> None:
    async with FakeGateway(NoSettings(), HOST) as gateway:
        assert gateway.table == RoutingTable()
        assert not (await gateway.health()).ok
        await gateway.apply(RoutingTable(version=1), None)
        gateway.trouble = TryAgain("not now", after=1)
        with pytest.raises(TryAgain):
            await gateway.apply(RoutingTable(version=2), None)
        gateway.metered.append(UsageRecord(id="1", at=0, model="m"))

        assert gateway.public_urls == (URL,)
        assert gateway.table.version == 1
        assert (await gateway.health()).ok
        assert [each.id async for batch in gateway.usage() for each in batch] == ["1"]
        assert [each async for each in gateway.usage()] == []


async def test_the_login_signs_in_whom_it_is_told_to() -> None:
    settings = FakeLoginSettings(fake_login_user="alice", fake_login_groups=("staff",))
    login = FakeLogin(settings, HOST)
    redirect = await login.begin(LoginAttempt(state="s1", callback_url="http://h/cb?x=1"))

    identity = await login.complete(
        LoginReply(
            parameters={"ticket": "ticket-s1", "state": "s1"},
            callback_url="http://h/cb",
            remembered=dict(redirect.remember),
        )
    )

    assert redirect.url == "http://h/cb?x=1&state=s1&ticket=ticket-s1"
    assert (identity.subject, identity.username, identity.groups) == ("fake:alice", "alice", ("staff",))


async def test_the_login_refuses_strangers_and_everybody_without_a_name() -> None:
    alice, nobody = (FakeLogin(FakeLoginSettings(fake_login_user=name), HOST) for name in ("alice", ""))
    reply = LoginReply(parameters={"ticket": "t"}, callback_url="", remembered={"ticket": "t"})

    with pytest.raises(LoginRefused, match="not begun here"):
        await alice.complete(LoginReply(parameters={"ticket": "t"}, callback_url=""))
    with pytest.raises(LoginRefused, match="told to sign nobody in"):
        await nobody.complete(reply)
