"""One running GPUStack for the tests of a module: real database, real engine, real processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, gpustack


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder, of the module's own, that the database's own user can enter too, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="gpustack-e2e-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(place: Path, engine: InstalledEngine, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A GPUStack with the engine installed already, and room for a few instances."""
    name = request.module.__name__.rpartition(".")[2]
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(8)]
    with gpustack(place / f"{name} data", place / f"{name} home", flags) as running:
        yield running
