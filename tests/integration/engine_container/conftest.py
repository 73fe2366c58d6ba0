"""A real container engine of the tests' own with a small image, and a place to run engines in."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpustack.plugin import LaunchPlan
from gpustack.worker.ports import Lease, PortPool
from gpustack.worker.runners.container import ContainerEngine
from gpustack.worker.runners.ending import end_recorded
from gpustack.worker.runners.engine import Container, Launch
from gpustack.worker.runners.logfile import log_path
from gpustack.worker.runners.records import records_dir
from support.containers import BASE_IMAGE, DockerEngine, base_image, docker_engine, require_docker
from support.running import free_ports

ENGINE = str(Path(__file__).parents[1] / "engine_process" / "fake_engine.py")


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    """An engine with an image that has Python."""
    require_docker()
    with docker_engine() as docker:
        docker("import", base_image(), BASE_IMAGE)
        yield docker


class Place:
    """A data directory with engines in containers."""

    def __init__(self, root: Path, docker: DockerEngine) -> None:
        self.root = root
        self.docker = docker
        self.run_dir = root / "run"
        self.log_dir = root / "log"
        self.ports = PortPool(free_ports(4))
        self.leases: list[Lease] = []

    def launch(self, *behaviour: str, number: int = 1, image: str = BASE_IMAGE, **changes: object) -> Launch:
        self.leases.append(lease := self.ports.take(f"i{number}"))
        container = Container(
            image=image,
            entrypoint=("python3",),
            arguments=("-u", ENGINE, str(lease.port), *behaviour),
            reads={ENGINE: ENGINE},
        )
        return Launch(
            **{
                "instance_id": number,
                "instance_name": f"i{number}",
                "plan": LaunchPlan(argv=("python3", *container.arguments)),
                "lease": lease,
                "log_path": log_path(self.log_dir, f"i{number}"),
                "scratch": self.root / "scratch" / str(number),
                "container": container,
                **changes,
            }
        )

    async def start(self, *behaviour: str, **changes: object) -> ContainerEngine:
        launch = self.launch(*behaviour, **changes)
        assert launch.container is not None
        return await ContainerEngine.start(self.run_dir, launch, launch.container)

    def records(self) -> list[str]:
        return sorted(path.name for path in records_dir(self.run_dir).glob("*.json"))

    def containers(self) -> list[str]:
        """Return the containers of this place in any state."""
        return self.docker("ps", "--all", "--quiet", "--filter", "label=gpustack.instance").split()


@pytest.fixture
def place(tmp_path: Path, docker: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{docker.socket}")
    if not docker("images", "--quiet", BASE_IMAGE):  # tests of pulls remove it
        docker("import", base_image(), BASE_IMAGE)
    place = Place(tmp_path, docker)
    yield place
    for lease in place.leases:
        lease.free()
    end_recorded(place.run_dir, grace=0.0)
    assert not place.records()
    assert not place.containers()


@pytest.fixture(name="until")
def _until() -> Callable[..., object]:
    async def until(what: Callable[[], object], *, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            await asyncio.sleep(0.02)

    return until
