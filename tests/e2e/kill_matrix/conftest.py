"""A GPUStack that serves one model from two engines for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.house import House, a_house, served_by_two
from support.running import a_port_range


@pytest.fixture(scope="module")
def house(place: Path, engine: InstalledEngine, request: pytest.FixtureRequest) -> Iterator[House]:
    name = request.module.__name__.rpartition(".")[2]
    flags = ["--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(8)]
    flags += ["--gateway-concurrency", "2"]
    with a_house(place / f"{name} data", place / f"{name} home", flags) as running:
        yield running


@pytest.fixture(scope="module")
def key(house: House, tiny_gguf: Path) -> str:
    """Deploy a model with two replicas; the key is an administrator's."""
    return served_by_two(house, tiny_gguf)
