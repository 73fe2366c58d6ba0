"""Taking an engine away again, also what a crash or another GPUStack left of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpustack.plugin import PipxPackage
from gpustack.worker.artifacts import ArtifactInstaller, InstallError

ACME = PipxPackage(
    package="acme-engine", version="1.2", command="acme", wheel=b"as it were", wheel_name="acme-1.2.whl"
)

#: Installs and uninstalls as pipx does; with a file `fails` it does not uninstall.
PIPX = """\
import os, pathlib, shutil, sys
home, bin_dir = pathlib.Path(os.environ["PIPX_HOME"]), pathlib.Path(os.environ["PIPX_BIN_DIR"])
place = home / "venvs" / "acme-engine-1-2" / "bin" / "acme"
if sys.argv[1] == "install":
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("#!/bin/sh\\necho acme 1.2\\n")
    place.chmod(0o755)
    (bin_dir / "acme_1.2").symlink_to(place)
elif (home / "fails").exists():
    sys.exit("ERROR: Permission denied: '/x'")
else:
    assert sys.argv[1:] == ["uninstall", "acme-engine-1-2"], sys.argv
    shutil.rmtree(place.parent.parent)
    (bin_dir / "acme_1.2").unlink(missing_ok=True)
"""


@pytest.fixture
def installer(tmp_path: Path) -> ArtifactInstaller:
    script = tmp_path / "pipx"
    script.write_text(f"#!{sys.executable}\n{PIPX}")
    script.chmod(0o755)
    return installer_at(tmp_path, "data_dir")


def installer_at(tmp_path: Path, data_dir: str) -> ArtifactInstaller:
    return ArtifactInstaller(
        bin_dir=tmp_path / "bin", data_dir=tmp_path / data_dir, pipx_path=str(tmp_path / "pipx")
    )


async def test_nothing_is_left(installer: ArtifactInstaller, tmp_path: Path) -> None:
    await installer.ensure("acme", ACME)
    assert await installer.remove("acme", ACME)
    assert list((tmp_path / "bin").iterdir()) == []
    assert list((tmp_path / "data_dir" / "pipx" / "venvs").iterdir()) == []
    assert not await installer.remove("acme", ACME)
    assert (await installer.ensure("acme", ACME)).exists()


async def test_a_link_that_leads_nowhere_and_its_receipt_go(
    installer: ArtifactInstaller, tmp_path: Path
) -> None:
    command = await installer.ensure("acme", ACME)
    command.resolve().unlink()
    (tmp_path / "data_dir" / "pipx" / "venvs" / "acme-engine-1-2" / "bin").rmdir()
    (tmp_path / "data_dir" / "pipx" / "venvs" / "acme-engine-1-2").rmdir()
    assert await installer.remove("acme", ACME)
    assert list((tmp_path / "bin").iterdir()) == []


async def test_a_receipt_alone_goes(installer: ArtifactInstaller, tmp_path: Path) -> None:
    (await installer.ensure("acme", ACME)).unlink()
    assert await installer.remove("acme", ACME)
    assert list((tmp_path / "bin").iterdir()) == []


async def test_what_another_installed_stays(installer: ArtifactInstaller, tmp_path: Path) -> None:
    command = await installer.ensure("acme", ACME)
    with pytest.raises(InstallError, match="another GPUStack installed; remove it there"):
        await installer_at(tmp_path, "other").remove("acme", ACME)
    assert command.exists()
    assert installer.installed() == {"acme": ["1.2"]}


async def test_a_failure_is_one_line_and_the_engine_can_be_used_again(
    installer: ArtifactInstaller, tmp_path: Path
) -> None:
    command = await installer.ensure("acme", ACME)
    (tmp_path / "data_dir" / "pipx" / "fails").touch()
    with pytest.raises(
        InstallError, match=r"acme_1\.2 cannot be removed: permission denied: /x; see "
    ) as caught:
        await installer.remove("acme", ACME)
    assert "\n" not in str(caught.value)
    assert await installer.ensure("acme", ACME) == command
