"""Taking an engine away again, also what a crash or another GPUStack left of it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpustack.kit.errors import Conflict
from gpustack.kit.locks import FileLock
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
    (home / "begun").touch()
    while (home / "waits").exists():
        pass
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
    shutil.rmtree(command.resolve().parent.parent)
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


async def test_what_runs_stays(installer: ArtifactInstaller) -> None:
    command = await installer.ensure("acme", ACME)
    (program := command.resolve().with_name("sleep")).symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        with pytest.raises(Conflict, match=f"acme_1.2 is in use by process {process.pid}"):
            await installer.remove("acme", ACME)
        process.kill()
    assert installer.installed() == {"acme": ["1.2"]}


async def test_what_is_installed_while_it_is_to_go_stays(
    installer: ArtifactInstaller, tmp_path: Path
) -> None:
    home = tmp_path / "data_dir" / "pipx"
    home.mkdir(parents=True)
    (home / "waits").touch()
    installing = asyncio.create_task(installer.ensure("acme", ACME))
    async with asyncio.timeout(20):
        while not (home / "begun").exists():
            await asyncio.sleep(0.02)
    removing = asyncio.create_task(installer.remove("acme", ACME))
    await asyncio.wait([removing], timeout=0.3)
    assert not removing.done()
    (home / "waits").unlink()

    assert (await installing).exists()
    with pytest.raises(Conflict, match="was installed meanwhile"):
        await removing
    assert installer.installed() == {"acme": ["1.2"]}


async def test_what_cannot_be_looked_at_keeps_nothing_else(
    installer: ArtifactInstaller, tmp_path: Path
) -> None:
    home = tmp_path / "data_dir" / "pipx"
    (home / ".foreign_1.lock").mkdir(parents=True)  # as little to be opened as root's
    (home / ".foreign_1.busy").touch()
    (home / ".acme_1.2.busy").touch()
    assert await installer.settle() == ["acme_1.2"]
    assert (home / ".foreign_1.busy").exists()


async def test_what_was_killed_leaves_nothing(installer: ArtifactInstaller, tmp_path: Path) -> None:
    home = tmp_path / "data_dir" / "pipx"
    left = [
        home / ".export-acme-x_1.2-a1b2_c3",
        home / "wheels" / ".import-acme-x_1.2-a1b2_c3",
        home / "pins" / "acme-x_1.2",
    ]
    for folder in left:
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "some.whl").touch()
    lock = FileLock(home / ".acme-x_1.2.lock")
    assert lock.acquire()
    await installer.settle()
    assert all(folder.exists() for folder in left), "somebody is at work"
    lock.release()
    await installer.settle()
    assert not any(folder.exists() for folder in left)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"disk": ', '"disk": -'),
        ('"extras": []', '"extras": [1]'),
        ('"extras": []', '"extras": null'),
        ('"backend": "acme"', '"backend": 7'),
        ('"verified": "20', '"verified": "x'),
        ("+00:00", ""),
        ("{", "[" * 100_000),
    ],
)
async def test_a_note_that_makes_no_sense_is_none(
    installer: ArtifactInstaller, tmp_path: Path, old: str, new: str
) -> None:
    command = await installer.ensure("acme", ACME)
    note = tmp_path / "bin" / "acme_1.2.json"
    text = note.read_text()
    assert old in text
    note.write_text(text.replace(old, new))
    assert installer.environments() == []
    assert await installer.ensure("acme", ACME) == command
    assert installer.installed() == {"acme": ["1.2"]}
