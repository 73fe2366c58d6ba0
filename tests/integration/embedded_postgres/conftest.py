"""Clusters to play with: made once, then copied, each in a place that PostgreSQL's user can enter."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpustack.db.embedded import EmbeddedPostgres
from gpustack.db.embedded.leftovers import holders

MEMORY = Path("/dev/shm")


def an_open_place(*, on_disk: bool = False) -> Path:
    """Return a new folder that others may pass through, as pytest's own are not; in memory where that is large."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2**30
    place = Path(tempfile.mkdtemp(prefix="gpustack-embedded-", dir=MEMORY if roomy and not on_disk else None))
    place.chmod(0o755)
    return place


def end_what_runs_in(place: Path) -> None:
    for data in (place / "postgresql" / "data", place / "a b" / "postgresql" / "data"):
        for process in holders(data):
            with contextlib.suppress(psutil.Error):
                process.kill()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty data directory; whatever runs in it is ended afterwards."""
    place = an_open_place()
    yield place
    end_what_runs_in(place)


@pytest.fixture
def place_on_disk() -> Iterator[Path]:
    """As ``place``, where programs may be run from too."""
    place = an_open_place(on_disk=True)
    yield place
    end_what_runs_in(place)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    place = an_open_place()

    async def make() -> None:
        postgres = EmbeddedPostgres(place, place / "log")
        await postgres.prepare()
        await postgres.stop()

    asyncio.run(make())
    yield place
    end_what_runs_in(place)


@pytest.fixture
def data_dir(template: Path, place: Path) -> Path:
    """A data directory with a cluster that was never started."""
    subprocess.run(["cp", "-a", f"{template}/.", place], check=True)
    return place


@pytest.fixture
async def supervised() -> AsyncIterator[Callable[[Path], EmbeddedPostgres]]:
    """Makes embedded PostgreSQLs and stops them afterwards."""
    made: list[EmbeddedPostgres] = []

    def make(place: Path, **options: Any) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(place, place / "log", **options))
        return made[-1]

    yield make
    for postgres in made:
        await postgres.stop()
