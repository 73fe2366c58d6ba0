"""The real pipx against an index on loopback: with uv, which is fast, and, slow, with pip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpustack.worker.artifacts import ArtifactInstaller
from support.packages import UV, Index, an_index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with an_index(tmp_path / "index") as found:
        yield found


@pytest.fixture(params=["uv", pytest.param("pip", marks=pytest.mark.slow)])
def with_uv(request: pytest.FixtureRequest) -> bool:
    if request.param == "uv" and not (UV / "uv").exists():
        pytest.skip("there is no uv in .tools; make setup fetches it")
    return bool(request.param == "uv")


@pytest.fixture
def an_installer(tmp_path: Path, index: Index, with_uv: bool) -> Callable[..., ArtifactInstaller]:
    """Return what makes installers of one machine; ``data`` names the data directory."""

    def make(data: str = "data dir", **more: Any) -> ArtifactInstaller:
        environ = index.environ(tmp_path, uv=with_uv) | more.pop("environ", {})
        return ArtifactInstaller(
            bin_dir=tmp_path / "bin dir",
            data_dir=tmp_path / data,
            log_dir=tmp_path / "log",
            environ=environ,
            **more,
        )

    return make
