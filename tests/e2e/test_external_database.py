"""The same on somebody else's PostgreSQL, of another version than ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import InstalledEngine
from support.postgres import PostgresServer, serving, system_binaries
from support.running import a_port_range, gpustack

pytestmark = pytest.mark.xdist_group("e2e-database")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with serving(system_binaries()) as running:
        yield running


def test_a_model_is_served_and_remembered(
    server: PostgresServer, place: Path, engine: InstalledEngine, tiny_gguf: Path
) -> None:
    url = server.url(asyncio.run(server.create_database()))
    data_dir, home = place / "external", place / "external home"
    flags = ["--database-url", url, "--bin-dir", str(engine.bin_dir), "--service-port-range", a_port_range(4)]
    with gpustack(data_dir, home, flags) as running:
        children = set(running.state()["children"])
        assert {"server", "gateway", "worker", "door"} <= children
        assert "postgres" not in children
        running.cli("deploy", str(tiny_gguf), "--name", "tiny")
        assert running.cli("chat", "tiny", "--once", "Hello", "--max-tokens", "4").stdout.strip()
        running.cli("stop")
    assert not (data_dir / "postgresql").exists()
    with gpustack(data_dir, home, flags) as again:
        assert [model["name"] for model in json.loads(again.cli("ls", "--json").stdout)] == ["tiny"]
