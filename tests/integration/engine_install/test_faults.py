"""What can happen to a machine while an engine is installed: kill -9, a full disk, folders of another owner."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from gpustack.worker.artifacts.folders import MARKER
from support.packages import Index, an_engine

Maker = Callable[..., ArtifactInstaller]
ROOT = Path(__file__).parents[3]

#: A worker that installs one engine, in a process of its own.
PROGRAM = """\
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gpustack.worker.artifacts import ArtifactInstaller
from support.packages import an_engine
root = Path(sys.argv[2])
if len(sys.argv) > 3:
    # Not before: this Python may be another's who lets nobody in.
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
installer = ArtifactInstaller(bin_dir=root / "bin dir", data_dir=root / "data dir", log_dir=root / "log")
try:
    print(asyncio.run(installer.ensure("acme", an_engine(), lambda line: print(line, flush=True))))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(ROOT / "tests"), str(tmp_path)]


def at_work() -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            pass
    return found


async def test_a_worker_that_is_killed_leaves_nothing_broken(
    index: Index, an_installer: Maker, with_uv: bool, tmp_path: Path
) -> None:
    """pipx and what it started go on without their worker; the next one ends them, and begins anew."""
    index.add("acme-engine", "1.0", command="acme")
    index.slow = 120
    mine = str(tmp_path)

    def orphans() -> list[int]:
        return [pid for pid in at_work() if mine in psutil.Process(pid).environ().get(MARKER, "")]

    worker = subprocess.Popen(
        command(tmp_path), env=index.environ(tmp_path, uv=with_uv), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not index.asked and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert index.asked, "it did not come to the download"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert orphans(), "pipx outlives its worker"
    installer = an_installer()
    assert installer.installed() == {}

    assert await installer.settle() == ["acme_1.0"]

    assert orphans() == []
    assert [path for path in (installer.home / "venvs").iterdir() if path.is_dir()] == []
    index.slow = 0
    engine = await installer.ensure("acme", an_engine())
    assert subprocess.run([engine], capture_output=True, text=True, check=True).stdout == "acme-engine 1.0\n"
    assert await installer.settle() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    place = tmp_path / "data dir"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
async def test_a_disk_that_is_full_in_the_middle(
    index: Index, an_installer: Maker, small_disk: Path, tmp_path: Path
) -> None:
    index.add("acme-engine", "1.0", command="acme", size=60 << 20)
    installer = an_installer(environ={"UV_LINK_MODE": "copy"})

    with pytest.raises(InstallError, match="the disk is full") as caught:
        await installer.ensure("acme", an_engine())

    assert caught.value.again
    assert "\n" not in str(caught.value)
    assert installer.environments() == []
    assert [path for path in (installer.home / "venvs").iterdir() if path.is_dir()] == []
    assert shutil.disk_usage(small_disk).free > 1 << 20, "what was begun is gone"
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)

    assert (await installer.ensure("acme", an_engine())).exists()


@pytest.mark.slow
@pytest.mark.parametrize("others", ["data dir", "bin dir"])
def test_folders_of_another_owner(index: Index, with_uv: bool, others: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    index.add("acme-engine", "1.0", command="acme")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chown(root, 65534, 65534)
        (root / others).mkdir()
        if others == "data dir":
            (root / others / "pipx").mkdir()
        ended = subprocess.run(
            [*command(root), "somebody else"],
            env=index.environ(root, uv=with_uv),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    what = "data directory" if others == "data dir" else "--bin-dir"
    assert f"{what} {root / others}" in ended.stderr
    assert "is not writable: Permission denied; change its owner or name another place" in ended.stderr
