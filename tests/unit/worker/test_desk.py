"""Backends live as long as the worker, each made once."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from gpustack.extensions import Catalogue, Registered
from gpustack.plugin import Host, InferenceBackend, NoSettings, Refused, ResourceClaim, Verdict
from gpustack.worker.desk import Desk


class Slow(InferenceBackend[NoSettings]):
    name = "slow"
    settings_type = NoSettings
    default_version = "1"
    opened = 0

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0.05)
        type(self).opened += 1
        return self

    def accepts(self, model: Any, devices: Any) -> Verdict:
        return Verdict.yes()

    def estimate(self, request: Any) -> ResourceClaim:
        return ResourceClaim(ram=1)

    def artifact(self, version: Any, platform: Any) -> Any:
        return None

    def launch(self, request: Any) -> Any:
        return None


async def test_asked_for_by_two_at_once_a_backend_is_made_once(tmp_path: Path) -> None:
    registered: Registered[Any] = Registered(cls=Slow, plugin="slow", distribution="slow", version="1")
    catalogue = Catalogue(backends={"slow": registered})
    host = Host(log=logging.getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    nothing: Any = SimpleNamespace()

    async with Desk(catalogue, host, nothing, nothing) as desk:
        first, second = await asyncio.gather(desk._backend(registered), desk._backend(registered))

    assert first is second
    assert Slow.opened == 1


async def test_what_a_backend_refuses_to_install_leaves_nothing_to_remove(tmp_path: Path) -> None:
    class Choosy(Slow):
        def artifact(self, version: Any, platform: Any) -> Any:
            raise Refused("there is none for this machine")

    registered: Registered[Any] = Registered(cls=Choosy, plugin="slow", distribution="slow", version="1")
    host = Host(log=logging.getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    nothing: Any = SimpleNamespace()
    machine: Any = SimpleNamespace(platform=lambda: None)

    async with Desk(Catalogue(backends={"slow": registered}), host, nothing, machine) as desk:
        await desk.remove_engine("slow", "1", ())
