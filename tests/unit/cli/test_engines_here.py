"""What `gpustack backends install` takes on a machine whose accelerators nobody looks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.cli.engines import Places, export_archive, install, package_of, remove
from gpustack.kit.errors import GPUStackError
from gpustack.plugin import Refused


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(data_dir=tmp_path, bin_dir=tmp_path / "bin", log_dir=tmp_path / "log", pipx_path="")


@pytest.mark.parametrize(
    ("name", "version"), [("vllm", "0.32.0"), ("sglang", "0.5.23"), ("llama-cpp", "2026.10.11549")]
)
async def test_an_engine_for_gpus_is_made_ready_on_a_machine_without(
    where: Places, name: str, version: str
) -> None:
    async with package_of(where, name, version) as package:
        assert package.version == version


async def test_what_a_backend_has_for_machines_without_a_gpu_comes_first(where: Places) -> None:
    async with package_of(where, "llama-box", "v0.0.171") as release:
        assert "cpu" in str(release) or "avx2" in str(release)
        assert "cuda" not in str(release)


async def test_a_version_that_cannot_be_is_refused_with_the_first_reason(where: Places) -> None:
    with pytest.raises(Refused, match="is no version of vLLM"):
        async with package_of(where, "vllm", "newest"):
            pass


async def test_what_is_not_installed_is_told_in_words(where: Places, tmp_path: Path) -> None:
    for doing, says in (
        (install(where, "custom", print), "backend custom installs nothing: its models bring a command or an image"),
        (
            export_archive(where, "llama-box", tmp_path / "x.tar", print),
            "backend llama-box comes as an archive; only engines that come as Python packages are exported and imported",
        ),
        (remove(where, "mine", print), "what was described is removed with `gpustack backends delete mine`"),
    ):  # fmt: skip
        with pytest.raises(GPUStackError) as caught:
            await doing
        assert str(caught.value).endswith(says)
