"""A whole worker whose engines are containers: what it starts, what it finds after it was away, and what it leaves."""

import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.extensions import Catalogue, Registered
from gpustack.plugin import ContainerImage
from gpustack.worker.runners.ending import end_recorded
from support.containers import BASE_IMAGE, DockerEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.xdist_group("engine-container"),
    pytest.mark.timeout(600),
]

_FILE = Path(__file__).parents[1] / "worker_agent" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("a_workers_surroundings", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
surroundings = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = surroundings
_SPEC.loader.exec_module(surroundings)

RUNNING = "running"


class InContainers(surroundings.FakeBackend):  # type: ignore[misc,name-defined]
    """The fake engine, in an image with Python."""

    def artifact(self, version: str, platform: Any) -> ContainerImage:
        return ContainerImage(image=BASE_IMAGE, version=version, command="python3")


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    server = surroundings.FakeServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def fleet(tmp_path: Path, server: Any, place: Any) -> AsyncIterator[Any]:
    """A worker that leaves its engines when it ends; images come from no registry."""
    (tmp_path / "worker").mkdir()
    fleet = surroundings.Fleet(tmp_path / "worker", server)
    fleet.config = replace(fleet.config, container_registry="", keep_engines=True)
    found = Registered(cls=InContainers, plugin="fake", distribution="fake", version="1")
    fleet.catalogue = Catalogue(backends={"fake": found})
    yield fleet
    await fleet.stop()
    end_recorded(fleet.config.run_dir, grace=0.0)
    fleet.socket.close()


def a_model(fleet: Any, behaviour: str = "fine") -> dict[str, Any]:
    # What the plan runs is a file of the tests, which the engine has to see.
    return {**fleet.a_model(behaviour), "backend_parameters": [behaviour, f"--engine={surroundings.ENGINE}"]}


def containers(docker: DockerEngine) -> list[str]:
    return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", "label=gpustack.instance").split()


async def test_it_runs_is_adopted_and_goes_when_it_was_withdrawn_meanwhile(
    fleet: Any, server: Any, until: Any, docker: DockerEngine
) -> None:
    await fleet.start()
    server.want(1, a_model(fleet))
    await until(lambda: server.last(1).get("state") == RUNNING, seconds=60)
    [container] = containers(docker)
    assert server.last(1)["pid"]

    await fleet.stop()
    assert containers(docker) == [container]
    server.reports.clear()
    await fleet.start()
    await until(lambda: server.last(1).get("state") == RUNNING, seconds=60)
    assert containers(docker) == [container]

    await fleet.stop()
    server.take_away(1)
    await fleet.start()
    await until(lambda: not containers(docker), seconds=60)


async def test_one_that_dies_is_started_anew_and_nothing_is_left_of_it(
    fleet: Any, server: Any, until: Any, docker: DockerEngine
) -> None:
    await fleet.start()
    server.want(1, a_model(fleet))
    await until(lambda: server.last(1).get("state") == RUNNING, seconds=60)
    before = containers(docker)

    os.kill(server.last(1)["pid"], signal.SIGKILL)

    await until(lambda: "was killed by signal 9" in str(server.reports), seconds=60)
    await until(lambda: server.last(1).get("state") == RUNNING and containers(docker) != before, seconds=60)
    assert len(containers(docker)) == 1


async def test_all_of_them_end_with_a_worker_that_keeps_none(
    fleet: Any, server: Any, until: Any, docker: DockerEngine
) -> None:
    await fleet.start(keep_engines=False)
    for number in (1, 2):
        server.want(number, a_model(fleet), name=f"m-{number}")
    await until(lambda: all(server.last(each).get("state") == RUNNING for each in (1, 2)), seconds=90)
    assert len(containers(docker)) == 2

    await fleet.stop()

    assert containers(docker) == []
