"""Programs that embed GPUStack, on real sockets and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import uvicorn

from gpustack.extensions import Catalogue, Registered, load_catalogue
from gpustack.plugin import InferenceBackend, LaunchPlan, NoSettings, PipxPackage, ResourceClaim, Verdict
from support.postgres import PostgresServer

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "embedding"
ENGINE = str(Path(__file__).parent / "engine.py")
PASSWORD = "correct horse"
QUIET = {
    "disable_update_check": True,
    "bootstrap_password": PASSWORD,
    "system_reserved": {"ram": 0, "vram": 0},
}


class AnsweringBackend(InferenceBackend[NoSettings]):
    """Runs the engine beside this file."""

    name = "answering"
    settings_type = NoSettings
    default_version = "1"

    def accepts(self, model: Any, devices: Any) -> Verdict:
        return Verdict.yes()

    def estimate(self, request: Any) -> ResourceClaim:
        return ResourceClaim(ram=1)

    def artifact(self, version: str, platform: Any) -> PipxPackage:
        return PipxPackage(package="answering", version=version, command="answering")

    def launch(self, request: Any) -> LaunchPlan:
        return LaunchPlan(argv=(request.command, ENGINE, str(request.port)))


class PythonIsThere:
    """In the place of the installer: there is nothing to install."""

    def __init__(self, **_: Any) -> None:
        pass

    def installed(self) -> dict[str, list[str]]:
        return {"answering": ["1"]}

    def environments(self) -> list[Any]:
        return []

    async def settle(self) -> list[str]:
        return []

    async def ensure(
        self, backend: str, artifact: Any, on_progress: Any, extras: tuple[str, ...] = ()
    ) -> Path:
        return Path(sys.executable)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """The installed plugins, and a backend whose engine answers."""
    monkeypatch.setattr("gpustack.worker.agent.ArtifactInstaller", PythonIsThere)
    found = load_catalogue(blocked=())
    found.backends = {
        "answering": Registered(cls=AnsweringBackend, plugin="test", distribution="test", version="1")
    }
    return found


@pytest.fixture
def new_database(postgres_server: PostgresServer) -> Iterator[Callable[[], str]]:
    """Makes an empty database, and returns its URL."""
    names: list[str] = []

    def make() -> str:
        names.append(asyncio.run(postgres_server.create_database()))
        return postgres_server.url(names[-1])

    yield make
    for name in names:
        asyncio.run(postgres_server.drop_database(name))


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that PostgreSQL's unprivileged user can enter, which it cannot where pytest has its own."""
    place = Path(tempfile.mkdtemp(prefix="gpustack-embedding-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@dataclass(frozen=True)
class Holdings:
    """What this process has: threads, children, sockets and other descriptors."""

    threads: frozenset[str]
    children: frozenset[int]
    descriptors: int
    handlers: tuple[Any, ...]

    @classmethod
    def now(cls) -> Holdings:
        gc.collect()
        process = psutil.Process()
        return cls(
            threads=frozenset(each.name for each in threading.enumerate()),
            children=frozenset(each.pid for each in process.children(recursive=True)),
            descriptors=process.num_fds(),
            handlers=(
                *(signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
                logging.root.level,
                *map(id, logging.root.handlers),
                logging.getLogger("gpustack").level,
            ),
        )


@pytest.fixture
def leaving_nothing(postgres_server: PostgresServer) -> Callable[[Callable[[], Any]], None]:
    """Runs something and holds what this process has afterwards against what it had before."""

    def run(work: Callable[[], Any]) -> None:
        # PostgreSQL's own processes come and go below the tests' server.
        theirs = {each.pid for each in postgres_server.family()}
        before = Holdings.now()
        work()
        after = Holdings.now()
        assert after.threads == before.threads
        assert [each for each in after.children - before.children if _parent(each) not in {0, *theirs}] == []
        assert after.descriptors == before.descriptors
        assert after.handlers == before.handlers

    return run


def _parent(pid: int) -> int:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return 0


class Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def hosted(app: Any) -> AsyncIterator[str]:
    """Serve somebody's program with its lifespan, as uvicorn does; yields its URL."""
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5, ws="none"
    )
    server = Quiet(config)
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                assert not task.done(), "it did not start"
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def example(name: str) -> ModuleType:
    """Return a module of the examples, loaded anew."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where litestar looks for the names in annotations
    spec.loader.exec_module(module)
    return module


async def until(holds: Callable[[], Any], *, seconds: float = 20.0) -> None:
    """Wait until ``await holds()`` is true."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


def others() -> set[asyncio.Task[Any]]:
    """Return the tasks of the running loop but the present one."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


@pytest.fixture
def tools() -> Any:
    """What tests share; a conftest cannot be imported with ``--import-mode=importlib``."""
    return SimpleNamespace(
        settings=QUIET, password=PASSWORD, hosted=hosted, example=example, until=until, others=others
    )
