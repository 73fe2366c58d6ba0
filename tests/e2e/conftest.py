"""One running GPUStack for the tests of a module: real database, real engine, real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.running import Running, a_port_range, gpustack


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the database's own user can enter too."""
    folder = tmp_path_factory.mktemp("gpustack")
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


@pytest.fixture(scope="module")
def stack(place: Path, engine: InstalledEngine, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A GPUStack with the engine installed already, and room for a few instances."""
    name = request.module.__name__.rpartition(".")[2]
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(8)]
    with gpustack(place / f"{name} data", place / f"{name} home", flags) as running:
        yield running
