"""The real engine, installed by the real pipx."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from support.engine import LINUX, InstalledEngine, install_engine, llama_cpp_backend

OLDER = "2026.8.10566"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    # A space, as in many home directories.
    return {name: tmp_path / "a user" / name for name in ("bin_dir", "data_dir", "log_dir")}


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def version_of(command: Path) -> str:
    return subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_engine_names_its_version(engine: InstalledEngine) -> None:
    assert engine.command == engine.bin_dir / f"gpustack-llama-server_{engine.version}"
    assert (
        version_of(engine.command) == f"gpustack-llama-server {engine.version} (xllamacpp {engine.version})\n"
    )


async def test_the_second_use_starts_no_process_and_takes_no_time(engine: InstalledEngine) -> None:
    nothing_works = {"PATH": "/nonexistent"}
    installer = ArtifactInstaller(
        bin_dir=engine.bin_dir, data_dir=engine.data_dir, pipx_path="/nonexistent", environ=nothing_works
    )
    started = time.perf_counter()

    assert await installer.ensure("llama-cpp", engine.artifact) == engine.command

    assert time.perf_counter() - started < 0.1
    assert engine.version in installer.installed()["llama-cpp"]


@pytest.mark.slow
async def test_two_versions_lie_side_by_side(engine: InstalledEngine) -> None:
    older = await asyncio.to_thread(install_engine, OLDER)

    assert older.command.parent == engine.command.parent
    assert OLDER in version_of(older.command)
    assert engine.version in version_of(engine.command)
    installed = ArtifactInstaller(bin_dir=engine.bin_dir, data_dir=engine.data_dir).installed()
    assert {OLDER, engine.version} <= set(installed["llama-cpp"])


@pytest.mark.slow
async def test_what_breaks_is_repaired(folders) -> None:
    """A lost link, a lost library and a lost interpreter; several callers at once wait for one repair."""
    backend = llama_cpp_backend(folders["data_dir"])
    artifact = backend.artifact(backend.default_version, LINUX)
    installer = ArtifactInstaller(**folders)
    command = await installer.ensure("llama-cpp", artifact)
    environment = command.resolve().parents[1]

    command.unlink()
    assert installer.installed() == {}
    assert await installer.ensure("llama-cpp", artifact) == command
    assert artifact.version in version_of(command)

    (environment / "bin" / "python").unlink()
    assert installer.installed() == {}
    steps: list[str] = []
    listening = (steps.append, None, None)
    both = await asyncio.gather(*(installer.ensure("llama-cpp", artifact, each) for each in listening))
    assert set(both) == {command}
    assert steps.count(f"installing gpustack-llama-server {artifact.version} with pipx") == 1
    assert steps[-1] == f"checking {command.name}"
    assert artifact.version in version_of(command)

    shutil.rmtree(next(environment.glob("lib/python*/site-packages/xllamacpp")))
    (command.parent / f"{command.name}.json").unlink()
    await installer.ensure("llama-cpp", artifact)
    assert artifact.version in version_of(command)
    assert not (folders["data_dir"].parent / ".local").exists()


async def test_without_a_network_it_says_so_in_one_line(folders, tmp_path) -> None:
    """Port 9 of loopback answers nobody."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": "1",
    }
    backend = llama_cpp_backend(folders["data_dir"])
    installer = ArtifactInstaller(**folders, environ=environ)

    with pytest.raises(InstallError) as caught:
        await installer.ensure("llama-cpp", backend.artifact(backend.default_version, LINUX))

    said = one_line(caught.value)
    assert "the package index cannot be reached" in said
    assert caught.value.again
    log = Path(re.search(r"see (.*\.log)$", said)[1])
    assert log.parent == folders["log_dir"]
    assert "Failed to establish a new connection" in log.read_text()
    assert installer.installed() == {}


async def test_a_version_that_does_not_exist_is_not_tried_again(folders, tmp_path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "xllamacpp-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "xllamacpp-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: xllamacpp\nVersion: 1.0\n"
        )
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIPX_DEFAULT_BACKEND": "pip"}
    backend = llama_cpp_backend(folders["data_dir"])
    installer = ArtifactInstaller(**folders, environ=environ)

    with pytest.raises(InstallError) as caught:
        await installer.ensure("llama-cpp", backend.artifact("2026.1.1", LINUX))

    assert "the package index has no xllamacpp==2026.1.1 for this machine" in one_line(caught.value)
    assert not caught.value.again
