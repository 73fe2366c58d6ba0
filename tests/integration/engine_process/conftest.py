"""A place to run engines in, where none stays behind."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpustack.plugin import LaunchPlan
from gpustack.worker.ports import PortPool
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.logfile import log_path
from gpustack.worker.runners.process import EngineProcess, Launch
from gpustack.worker.runners.records import records_dir
from support.running import alive, free_ports

ENGINE = str(Path(__file__).with_name("fake_engine.py"))


class Place:
    """A data directory with engines in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run"
        self.log_dir = root / "log"
        self.ports = PortPool(free_ports(4))

    def launch(self, behaviour: str, *, number: int = 1, **changes: object) -> Launch:
        lease = self.ports.take(f"i{number}")
        plan = LaunchPlan(argv=(sys.executable, ENGINE, str(lease.port), behaviour))
        return Launch(
            **{
                "instance_id": number,
                "instance_name": f"i{number}",
                "plan": plan,
                "lease": lease,
                "log_path": log_path(self.log_dir, f"i{number}"),
                "scratch": self.root / "scratch" / str(number),
                **changes,
            }
        )

    async def start(self, behaviour: str, **changes: object) -> EngineProcess:
        return await EngineProcess.start(self.run_dir, self.launch(behaviour, **changes))

    def records(self) -> list[str]:
        return sorted(path.name for path in records_dir(self.run_dir).glob("*.json"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    end_recorded(place.run_dir, grace=0.0)
    assert not place.records()


async def until(what: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until ``what()`` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


@pytest.fixture(name="until")
def _until() -> Callable[..., object]:
    return until


@pytest.fixture(name="alive")
def _alive() -> Callable[[int], bool]:
    return alive
