"""A fake hub, the real library and real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.schemas import ModelFileDownload
from gpustack.testing.hub import FakeHub
from gpustack.worker.artifacts.hub import HubConfig, HubFiles, Progress
from gpustack.worker.artifacts.hub.cache import HubSource

CHAT = HubSource(repo="org/tiny-GGUF")


class Place:
    """One worker's view of the hub, with what it was told."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.hub = hub
        self.cache = folder / "huggingface"
        self.told: list[ModelFileDownload] = []
        self.seen: list[Progress] = []

    def files(self, **more: Any) -> HubFiles:
        """Return the files as a new worker process would have them."""
        values: dict[str, Any] = {
            "cache_dir": self.cache,
            "endpoint": self.hub.url,
            "stall": 20.0,
            "retry_first": 0.1,
        }
        return HubFiles(HubConfig(**{**values, **more}), self.told.append, every=0.05)

    async def fetch(self, source: HubSource = CHAT, **more: Any) -> Path:
        """Resolve and fetch a source."""
        files = self.files(**more)
        found = await files.facts(source)
        return await files.fetch(source, found.commit, self.seen.append)

    def partial(self) -> int:
        """Return the bytes of files that are not whole yet."""
        return sum(each.stat().st_size for each in self.cache.glob("models--*/blobs/*.incomplete"))


@pytest.fixture
def hub(tiny_gguf: Path, tiny_hf: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        fake.add("org/tiny-GGUF", {"tiny-Q4_K_M.gguf": tiny_gguf, "README.md": b"# tiny"})
        fake.add("org/tiny", tiny_hf)
        yield fake


@pytest.fixture
def place(hub: FakeHub, tmp_path: Path) -> Iterator[Place]:
    yield Place(hub, tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)
