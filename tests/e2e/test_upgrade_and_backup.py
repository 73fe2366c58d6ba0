"""Data outlive versions, mistakes and machines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gpustack.db.embedded import EmbeddedPostgres
from gpustack.db.source import source_of
from support.engine import InstalledEngine
from support.old_database import at_the_first_step
from support.running import Running, gpustack, spawn

pytestmark = pytest.mark.xdist_group("e2e-upgrade")


async def in_its_database(data_dir: Path, *statements: str, old: bool = False) -> list[object]:
    """Run SQL in the embedded database of a GPUStack that does not run; ``old`` makes one of the first version."""
    postgres = EmbeddedPostgres(data_dir, data_dir / "log")
    await postgres.prepare()
    await postgres.start()
    try:
        if old:
            await at_the_first_step(postgres.url)
        connection = await source_of(postgres.url).open()
        rows = [await connection.fetch(statement) for statement in statements]
        connection.terminate()
        return [next(iter(found[0].values())) if found else None for found in rows]
    finally:
        await postgres.stop()


def refused(running: Running) -> str:
    """Return the one line with which it ends, with exit status 1."""
    assert running.end(0, timeout=60) == 1
    lines = [line for line in running.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, running.output
    assert "Traceback" not in running.output
    return lines[0]


def test_an_older_database_is_backed_up_and_brought_up(place: Path, engine: InstalledEngine) -> None:
    data_dir, home = place / "old", place / "old home"
    data_dir.mkdir()
    asyncio.run(in_its_database(data_dir, old=True))
    with gpustack(data_dir, home, ["--bin-dir", str(engine.bin_dir)]) as running:
        (backup,) = (data_dir / "backups").iterdir()
        assert f"its backup is {backup}" in running.output
        assert "was brought up: 0002_" in running.output
        assert [model["name"] for model in json.loads(running.cli("ls", "--json").stdout)] == ["old"]
    # What it was is in the backup, and can be had back as far as this version goes.
    other = place / "old restored"
    env = {"GPUSTACK_DATA_DIR": str(other)}
    with gpustack(other, home, env=env) as running:
        refusal = running.cli("restore", str(backup), check=False)
        assert (refusal.returncode, "in use by process" in refusal.stderr) == (1, True)
    refusal = running.cli("restore", str(backup), check=False)
    assert (refusal.returncode, "--replace" in refusal.stderr) == (1, True), refusal.stderr
    assert "Restored" in running.cli("restore", str(backup), "--replace").stdout
    assert len(list((other / "backups").glob("before-restore-*"))) == 1
    with gpustack(other, home) as running:
        assert [model["name"] for model in json.loads(running.cli("ls", "--json").stdout)] == ["old"]


def test_a_failing_migration_changes_nothing_and_names_the_backup(place: Path) -> None:
    data_dir, home = place / "failing", place / "failing home"
    data_dir.mkdir()
    asyncio.run(in_its_database(data_dir, "ALTER TABLE model_files ADD COLUMN download_rate TEXT", old=True))
    line = refused(spawn(data_dir, home))
    (backup,) = (data_dir / "backups").iterdir()
    assert "it is as it was before" in line
    assert str(backup) in line
    ledger, column = asyncio.run(
        in_its_database(
            data_dir,
            "SELECT string_agg(name, ',') FROM migrations",
            "SELECT count(*) FROM information_schema.columns WHERE column_name = 'rollout'",
        )
    )
    assert (ledger, column) == ("0001_initial", 0)


def test_newer_data_are_refused(place: Path) -> None:
    data_dir, home = place / "newer", place / "newer home"
    with gpustack(data_dir, home):
        pass
    asyncio.run(in_its_database(data_dir, "INSERT INTO migrations (name) VALUES ('0999_later')"))
    assert "newer version of GPUStack (it has 0999_later)" in refused(spawn(data_dir, home))
    assert not (data_dir / "backups").exists()
    (data_dir / "version").write_text("99.0.0\n")
    assert "was used by GPUStack 99.0.0, which is newer" in refused(spawn(data_dir, home))


@pytest.mark.slow
def test_a_backup_of_a_running_one_makes_another(place: Path) -> None:
    one, other, home = place / "one", place / "other", place / "backup home"
    file = home / "it.tar.gz"
    with gpustack(one, home) as running:
        said = running.cli("backup", str(file)).stdout
        assert str(file) in said
        assert file.stat().st_mode & 0o777 == 0o600
        again = running.cli("backup", str(file), check=False)
        assert (again.returncode, "exists already" in again.stderr) == (1, True)
        assert json.loads(running.cli("backup", "--json").stdout)["rows"] > 0
        key = running.cli("keys", "create", "mine").stdout
        assert key
    # Also when nothing runs, and then nothing runs afterwards.
    assert running.cli("backup", str(home / "stopped.tar.gz"), "--json").returncode == 0
    assert not running.own_processes()
    assert running.cli("restore", str(home / "stopped.tar.gz"), "--data-dir", str(other)).returncode == 0
    assert not running.own_processes()
    assert (other / "token").read_text() == (one / "token").read_text()
    with gpustack(other, home) as moved:
        assert "mine" in moved.cli("keys", "list").stdout
        assert [w["state"] for w in json.loads(moved.cli("workers", "--json").stdout)] == ["ready"]
    missing = running.cli("backup", "--data-dir", str(place / "nothing"), check=False)
    assert (missing.returncode, "holds no database" in missing.stderr) == (1, True)
    missing = running.cli("backup", str(place / "no such" / "x.tar.gz"), check=False)
    assert (missing.returncode, "there is no directory" in missing.stderr) == (1, True)
