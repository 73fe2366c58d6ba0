"""The wheels that the backend makes of the launcher."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from support.engine import LINUX, llama_cpp_backend

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = ROOT / "plugins" / "gpustack-llama-server"


@pytest.fixture(params=["2026.10.11549", "2026.4.8672.1", "0.2.14"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def artifact(version: str, tmp_path: Path):
    return llama_cpp_backend(tmp_path).artifact(version, LINUX)


def contents(wheel: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_its_record_is_true(artifact, version) -> None:
    files = contents(artifact.wheel)
    name = f"gpustack_llama_server-{version}.dist-info/RECORD"

    recorded = [line.rsplit(",", 2) for line in files[name].decode().splitlines()]

    assert {path for path, _, _ in recorded} == set(files)
    for path, digest, size in recorded:
        if path == name:
            assert (digest, size) == ("", "")
            continue
        true = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={true}", str(len(files[path])))


def test_it_pins_the_engine_to_its_own_version(artifact, version) -> None:
    metadata = message_from_bytes(
        contents(artifact.wheel)[f"gpustack_llama_server-{version}.dist-info/METADATA"]
    )

    assert metadata["Version"] == version
    assert metadata.get_all("Requires-Dist") == [f"xllamacpp=={version}"]
    assert artifact.wheel_name == f"gpustack_llama_server-{version}-py3-none-any.whl"
    assert (artifact.package, artifact.version, artifact.command) == (
        "gpustack-llama-server",
        version,
        "gpustack-llama-server",
    )


def test_it_is_the_same_every_time(artifact, version, tmp_path) -> None:
    code = (
        "import sys, hashlib; from gpustack_backends.llama_cpp.launcher import launcher_wheel;"
        f"print(hashlib.sha256(launcher_wheel({version!r})[1]).hexdigest())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    assert answer.stdout.strip() == hashlib.sha256(artifact.wheel).hexdigest()


def test_it_agrees_with_the_launchers_own_project(tmp_path) -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    backend = llama_cpp_backend(tmp_path)
    files = contents(backend.artifact(backend.default_version, LINUX).wheel)
    info = f"gpustack_llama_server-{backend.default_version}.dist-info"
    metadata = message_from_bytes(files[f"{info}/METADATA"])

    assert project["version"] == backend.default_version
    assert project["dependencies"] == metadata.get_all("Requires-Dist")
    assert project["requires-python"] == metadata["Requires-Python"]
    assert project["description"] == metadata["Summary"]
    assert project["license"] == metadata["License-Expression"]
    (command, target), *_ = project["scripts"].items()
    assert files[f"{info}/entry_points.txt"].decode() == f"[console_scripts]\n{command} = {target}\n"
    assert {Path(name).name for name in files if not name.startswith(info)} == {
        path.name for path in (PLUGIN / "src" / "gpustack_llama_server").iterdir() if path.is_file()
    }


@pytest.mark.parametrize("version", ["2026.4.8672.1"])
def test_installers_take_it(artifact, tmp_path) -> None:
    """Installed without its dependency, the command is there and says in one line what it misses."""
    wheel, venv = tmp_path / artifact.wheel_name, tmp_path / "venv"
    wheel.write_bytes(artifact.wheel)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, capture_output=True)
    install = [venv / "bin" / "pip", "install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run(install, check=True, capture_output=True)

    answer = subprocess.run(
        [venv / "bin" / artifact.command, "--version"], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1
    assert answer.stderr == "gpustack-llama-server: xllamacpp cannot be loaded: No module named 'xllamacpp'\n"


@pytest.mark.parametrize("version", ["2026.4.8672.1"])
def test_a_built_gpustack_backends_makes_the_same_wheel(artifact, version, tmp_path) -> None:
    """Built as a distribution, it carries the launcher's source and needs no repository."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT / "gpustack_backends", check=True, capture_output=True)
    (built,) = tmp_path.glob("gpustack_backends-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r});"
        "import gpustack_backends.llama_cpp.launcher as m, hashlib;"
        f"print(m.__file__, hashlib.sha256(m.launcher_wheel({version!r})[1]).hexdigest())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )

    place, digest = answer.stdout.split()
    assert place.startswith(str(tmp_path))
    assert digest == hashlib.sha256(artifact.wheel).hexdigest()
