"""Detectors may fail, hang, or block their event loop; the machine is measured all the same."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.extensions import Catalogue, Registered
from gpustack.plugin import (
    DeviceExposure,
    GpuDetector,
    GpuDevice,
    Host,
    NoSettings,
    SystemDetector,
    SystemReading,
    Verdict,
)
from gpustack.worker import status
from gpustack.worker.status import Machine

DOOR = threading.Event()


class Calm(SystemDetector[NoSettings]):
    name = "calm"
    settings_type = NoSettings

    def present(self) -> Verdict:
        return Verdict.yes()

    async def measure(self, paths: Any) -> SystemReading:
        return SystemReading(cores=4, ram_total=100, ram_used=10)


class Blocks(GpuDetector[NoSettings]):
    """Answers once, then hangs as ``how`` says."""

    name = "blocks"
    settings_type = NoSettings
    vendor = "acme"
    how = "blocks its loop"
    calls = 0

    def present(self) -> Verdict:
        return Verdict.yes()

    async def devices(self) -> list[GpuDevice]:
        type(self).calls += 1
        if self.calls > 1:
            if self.how == "blocks its loop":
                DOOR.wait()
            elif self.how == "blocks a thread":
                await asyncio.to_thread(DOOR.wait)
            else:
                raise ValueError("no driver")
        return [GpuDevice(uuid="u", index=0, vendor="acme", name="A", type="acme", memory_total=5)]

    async def usage(self) -> dict[str, Any]:
        return {}

    def expose(self, devices: Any) -> DeviceExposure:
        return DeviceExposure()


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    DOOR.clear()
    monkeypatch.setattr(status, "_PATIENCE", 0.2)
    monkeypatch.setattr(Blocks, "calls", 0)
    yield Catalogue(
        system_detectors={"calm": Registered(cls=Calm, plugin="calm", distribution="calm", version="1")},
        gpu_detectors={"blocks": Registered(cls=Blocks, plugin="blocks", distribution="b", version="1")},
    )
    DOOR.set()


def a_host(tmp_path: Path) -> Host:
    return Host(log=logging.getLogger(), data_dir=tmp_path, bin_dir=tmp_path)


@pytest.mark.parametrize("how", ["blocks its loop", "blocks a thread", "raises"])
async def test_a_detector_in_trouble_holds_nobody_up(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(Blocks, "how", how)
    async with Machine(catalogue, a_host(tmp_path), ()) as machine:
        await machine.measure()
        threads = threading.active_count()
        began = time.monotonic()

        for _ in range(5):
            found = await machine.measure()

        assert time.monotonic() - began < 0.2 * 3
        assert found.memory.total == 100
        # What it said last stays.
        assert [gpu.uuid for gpu in found.gpu_devices] == ["u"]
        assert [device.uuid for device in machine.devices] == ["u"]
        assert threading.active_count() <= threads + 1
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 1) == 5
        began = time.monotonic()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("devices", ["x", None], "devices returned 'x', which is no GpuDevice"),
        ("devices", None, "TypeError"),
        ("usage", {"u": 5}, "usage returned 5, which is no GpuUsage"),
        ("devices", SystemExit(3), "SystemExit: 3"),
        ("devices", asyncio.CancelledError(), "CancelledError"),
        ("devices", KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
async def test_a_detector_that_answers_rubbish_or_ends_the_program_is_named(
    catalogue: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    answer: object,
    words: str,
) -> None:
    async def rubbish(_: Any) -> object:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(Blocks, method, rubbish)
    async with Machine(catalogue, a_host(tmp_path), ()) as machine:
        found = await machine.measure()
    assert found.memory.total == 100
    assert len(found.gpu_devices) == (method == "usage")
    said = [each.message for each in caplog.records]
    assert any(each.startswith("detector blocks: ") and words in each for each in said), said


async def test_one_that_comes_back_is_asked_again(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "how", "blocks a thread")
    async with Machine(catalogue, a_host(tmp_path), ()) as machine:
        for _ in range(3):
            await machine.measure()
        assert Blocks.calls == 2

        DOOR.set()
        await asyncio.sleep(0.1)
        await machine.measure()

        assert Blocks.calls == 3


def test_a_detector_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
import asyncio, logging, pathlib, time
from gpustack.kit.threads import SideLoop
async def main():
    loop = SideLoop("x")
    await asyncio.wait([loop.start(asyncio.to_thread(time.sleep, 60))], timeout=0.1)
    loop.close()
    print("done")
asyncio.run(main())
"""
    began = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=True
    )
    assert answer.stdout == "done\n"
    assert time.monotonic() - began < 20
