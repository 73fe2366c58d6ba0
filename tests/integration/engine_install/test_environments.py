"""What is in an environment: extra packages, the lock of a version, what has to import; and what is left of failures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpustack.worker.artifacts import ArtifactInstaller, InstallError
from support.packages import Index, an_engine, sha256

Maker = Callable[..., ArtifactInstaller]


def says(command: Path, *words: str) -> str:
    return subprocess.run([command, *words], capture_output=True, text=True, check=True, timeout=30).stdout


def imported(command: Path, module: str) -> str:
    """Return the version of a package in the engine's environment; empty when it is not there."""
    python = command.resolve().parent / "python"
    code = f"import importlib.metadata as m; print(m.version({module!r}))"
    ended = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30)
    return ended.stdout.strip()


def nothing_is_left(installer: ArtifactInstaller) -> None:
    assert installer.environments() == []
    assert [path.name for path in installer.bin_dir.iterdir()] == []
    venvs = installer.home / "venvs"
    # pipx leaves an empty lock file there.
    assert not venvs.exists() or [path for path in venvs.iterdir() if path.is_dir()] == []
    assert list(installer.home.glob(".trash-*")) == list(installer.home.glob(".*.busy")) == []


async def failure(installer: ArtifactInstaller, package, **more) -> InstallError:
    with pytest.raises(InstallError) as caught:
        await installer.ensure("acme", package, **more)
    assert "\n" not in str(caught.value)
    nothing_is_left(installer)
    return caught.value


async def test_the_packages_of_a_version_its_lock_and_its_imports(
    index: Index, an_installer: Maker, tmp_path: Path
) -> None:
    index.add("acme-engine", "1.0", command="acme", requires=("dep",))
    old, _ = index.add("dep", "1.0"), index.add("dep", "2.0")
    index.add("helper", "3.0")
    package = an_engine(
        requirements=("helper>=2",),
        constraints=f"dep==1.0 --hash=sha256:{sha256(old)}\n",
        imports=("acme_engine", "helper"),
    )
    steps: list[str] = []

    command = await an_installer().ensure("acme", package, steps.append)

    assert says(command, "--version") == "acme-engine 1.0\n"
    assert (imported(command, "dep"), imported(command, "helper")) == ("1.0", "3.0")
    assert steps[0] == "installing acme-engine 1.0 with pipx"
    assert steps[-1] == "checking acme_1.0"
    (held,) = an_installer().environments()
    assert held.receipt.disk > 10_000
    assert held.receipt.requirements == ["helper>=2"]


async def test_a_file_with_another_hash_is_refused(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme", requires=("dep",))
    index.add("dep", "1.0")
    package = an_engine(constraints=f"dep==1.0 --hash=sha256:{'0' * 64}")

    error = await failure(an_installer(), package)

    assert "is not the one that the lock of this version names (its hash is another)" in str(error)
    assert not error.again


async def test_deployments_with_other_packages_have_environments_of_their_own(
    index: Index, an_installer: Maker
) -> None:
    index.add("acme-engine", "1.0", command="acme")
    for version in ("1.0", "2.0"):
        index.add("dep", version)
    one, two = an_installer(), an_installer()

    plain, first, second, again = await asyncio.gather(
        one.ensure("acme", an_engine()),
        one.ensure("acme", an_engine(), extras=("dep==1.0",)),
        two.ensure("acme", an_engine(), extras=("dep==2.0",)),
        two.ensure("acme", an_engine(), extras=("dep==1.0",)),
    )

    assert plain.name == "acme_1.0"
    assert first == again
    assert (
        len({plain, first, second})
        == len({each.resolve().parents[1] for each in (plain, first, second)})
        == 3
    )
    assert [imported(each, "dep") for each in (plain, first, second)] == ["", "1.0", "2.0"]
    assert one.installed() == {"acme": ["1.0"]}
    assert sorted(held.receipt.extras for held in one.environments()) == [[], ["dep==1.0"], ["dep==2.0"]]
    assert await two.remove("acme", an_engine(), extras=("dep==2.0",))
    assert sorted(held.link for held in one.environments()) == sorted((plain, first))


async def test_what_does_not_run_is_removed_again(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme", body="sys.exit('no CUDA here')")

    error = await failure(an_installer(), an_engine())

    assert (
        "was installed but does not work, and was removed again: --version ended with status 1: no CUDA"
        in str(error)
    )
    # The next attempt begins anew, and a better file works.
    index.add("acme-engine", "1.0", command="acme")
    fresh = {"UV_CACHE_DIR": str(index.folder.parent / "another cache")}
    assert says(await an_installer(environ=fresh).ensure("acme", an_engine())) == "acme-engine 1.0\n"


@pytest.mark.slow
async def test_what_does_not_import_is_removed_again(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme")

    error = await failure(an_installer(), an_engine(imports=("acme_engine", "acme_kernels")))

    assert "importing acme_kernels failed: ModuleNotFoundError: No module named 'acme_kernels'" in str(error)


@pytest.mark.slow
async def test_a_version_that_does_not_exist(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme")

    error = await failure(an_installer(), an_engine("9.9"))

    assert "the package index has no acme-engine==9.9 for this machine and Python" in str(error)
    assert not error.again


@pytest.mark.slow
async def test_packages_that_contradict_each_other(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme", requires=("dep<2",))
    for version in ("1.0", "2.0"):
        index.add("dep", version)

    error = await failure(an_installer(), an_engine(), extras=("dep>=2",))

    assert "the packages that it needs contradict each other" in str(error)
    assert not error.again


@pytest.mark.slow
async def test_an_index_that_is_away_comes_back(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme")
    index.down = True

    assert (await failure(an_installer(), an_engine())).again
    index.down = False

    assert (await an_installer().ensure("acme", an_engine())).exists()


async def test_a_second_worker_of_the_machine_installs_nothing(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme")
    command = await an_installer("one").ensure("acme", an_engine())
    asked = len(index.asked)
    began = time.perf_counter()

    assert await an_installer("two").ensure("acme", an_engine()) == command

    assert time.perf_counter() - began < 0.1
    assert len(index.asked) == asked
    assert not (command.parents[1] / "two" / "pipx").exists()


@pytest.mark.slow
async def test_what_is_set_for_pip_in_a_file_holds(index: Index, an_installer: Maker, tmp_path: Path) -> None:
    """An index that knows the engine, and a folder with what it needs; nothing is set for uv."""
    from support.packages import a_wheel

    index.add("acme-engine", "1.0", command="acme", requires=("dep",))
    a_wheel(tmp_path / "some wheels", "dep", "1.0")
    # Values of find-links are separated by spaces, so the folder's own is written as in a URL.
    folder = (tmp_path / "some wheels").as_uri()
    (tmp_path / "pip.conf").write_text(
        f"[global]\nindex-url = {index.url}\n[install]\nfind-links = {folder}\n"
    )
    environ = {"PIP_INDEX_URL": "", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}

    command = await an_installer(environ=environ).ensure("acme", an_engine())

    assert imported(command, "dep") == "1.0"


@pytest.mark.slow
async def test_a_use_is_noted_once_in_a_while(index: Index, an_installer: Maker) -> None:
    index.add("acme-engine", "1.0", command="acme")
    installer = an_installer()
    command = await installer.ensure("acme", an_engine())
    note = command.with_name("acme_1.0.used")
    receipt = command.with_name("acme_1.0.json").stat().st_mtime_ns
    recent, long_ago = time.time() - 60, time.time() - 90_000
    os.utime(note, (recent, recent))
    await installer.ensure("acme", an_engine())
    assert note.stat().st_mtime == pytest.approx(recent, abs=0.01)
    os.utime(note, (long_ago, long_ago))

    await installer.ensure("acme", an_engine())

    assert note.stat().st_mtime > recent
    assert command.with_name("acme_1.0.json").stat().st_mtime_ns == receipt
