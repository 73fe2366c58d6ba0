"""It starts, answers, ends with its supervisor, and comes back after every kind of death."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil
import pytest

from gpustack.db.embedded import EmbeddedPostgres, leftovers
from gpustack.db.embedded.leftovers import holders
from gpustack.kit.errors import Conflict, GPUStackError

Make = Callable[..., EmbeddedPostgres]
A_SUPERVISOR = Path(__file__).with_name("a_supervisor.py")


async def answer(postgres: EmbeddedPostgres, sql: str) -> object:
    connection = await asyncpg.connect(postgres.url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def started(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    await postgres.prepare()
    await postgres.start()
    return postgres


def until_nobody_works_in(data: Path, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while left := holders(data):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


async def test_a_first_start_in_a_path_with_a_space_answers_sql(place: Path, supervised: Make) -> None:
    before = place.stat().st_mode
    postgres = await started(supervised(place / "a b"))
    assert await answer(postgres, "SELECT current_user || '@' || current_database()") == "gpustack@gpustack"
    assert await answer(postgres, "SHOW server_encoding") == "UTF8"
    assert place.stat().st_mode == before
    assert (place / "a b" / "postgresql" / "password").stat().st_mode & 0o777 == 0o600


async def test_it_listens_on_loopback_only(data_dir: Path, supervised: Make) -> None:
    postgres = await started(supervised(data_dir))
    assert postgres.pid is not None
    listening = [c.laddr for c in psutil.Process(postgres.pid).net_connections() if c.status == "LISTEN"]
    assert {address.ip for address in listening} == {"127.0.0.1"}


async def test_what_was_written_is_there_after_a_restart_on_the_same_port(
    data_dir: Path, supervised: Make
) -> None:
    postgres = await started(supervised(data_dir))
    await answer(postgres, "CREATE TABLE kept AS SELECT 42 AS n")
    url = postgres.url
    await postgres.stop()
    assert await postgres.wait() == "PostgreSQL was stopped"
    assert postgres.pid is None

    again = await started(supervised(data_dir))
    assert again.url == url
    assert await answer(again, "SELECT n FROM kept") == 42


async def test_a_stop_does_not_wait_for_clients(data_dir: Path, supervised: Make) -> None:
    postgres = await started(supervised(data_dir))
    connection = await asyncpg.connect(postgres.url)
    sleeping = asyncio.ensure_future(connection.fetchval("SELECT pg_sleep(60)"))
    await asyncio.sleep(0.05)
    begun = time.monotonic()
    await postgres.stop()
    assert time.monotonic() - begun < 2.0
    with pytest.raises((asyncpg.PostgresError, ConnectionError)):
        await sleeping
    connection.terminate()


@pytest.mark.parametrize("user", ["gpustack", "postgres"])
async def test_a_wrong_password_is_refused(data_dir: Path, supervised: Make, user: str) -> None:
    postgres = await started(supervised(data_dir))
    address = postgres.url.partition("@")[2]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://{user}:wrong@{address}")
    stored = await answer(postgres, "SELECT rolpassword FROM pg_authid WHERE rolname = 'gpustack'")
    assert str(stored).startswith("SCRAM-SHA-256$")


async def test_a_lost_password_file_gives_a_new_password(data_dir: Path, supervised: Make) -> None:
    (data_dir / "postgresql" / "password").unlink()
    postgres = await started(supervised(data_dir))
    assert await answer(postgres, "SELECT 1") == 1


async def test_a_taken_port_is_exchanged_for_another(data_dir: Path, supervised: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (data_dir / "postgresql" / "port").write_text(f"{port}\n")
        postgres = await started(supervised(data_dir))
        assert f":{port}/" not in postgres.url
        assert await answer(postgres, "SELECT 1") == 1


async def test_a_port_taken_at_the_last_moment_is_exchanged_too(
    data_dir: Path, supervised: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpustack.db.embedded import port as ports

    choose = ports.choose
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(
            ports, "choose", lambda record, avoid: choose(record, avoid=avoid) if port in avoid else port
        )
        postgres = await started(supervised(data_dir))
        assert await answer(postgres, "SELECT 1") == 1


async def test_its_death_is_told_in_one_line_and_it_starts_again(data_dir: Path, supervised: Make) -> None:
    postgres = await started(supervised(data_dir))
    await answer(postgres, "CREATE TABLE kept AS SELECT 42 AS n")
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    assert await postgres.wait() == "PostgreSQL was ended by SIGKILL"
    await postgres.start()
    assert await answer(postgres, "SELECT n FROM kept") == 42


def run_a_supervisor(data_dir: Path) -> tuple[subprocess.Popen[str], int]:
    supervisor = subprocess.Popen(
        [sys.executable, str(A_SUPERVISOR), str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    return supervisor, int(supervisor.stdout.readline())


async def test_a_killed_supervisor_leaves_nothing_behind(data_dir: Path, supervised: Make) -> None:
    supervisor, _ = run_a_supervisor(data_dir)
    with supervisor:
        supervisor.kill()
    until_nobody_works_in(data_dir / "postgresql" / "data")
    assert await answer(await started(supervised(data_dir)), "SELECT 1") == 1


async def test_the_next_supervisor_ends_an_orphan_first(data_dir: Path, supervised: Make) -> None:
    supervisor, orphan = run_a_supervisor(data_dir)
    with supervisor:
        os.kill(orphan, signal.SIGSTOP)  # so that it does not notice the death of its supervisor
        supervisor.kill()
    postgres = supervised(data_dir)
    starting = asyncio.ensure_future(started(postgres))
    await asyncio.sleep(0.3)
    assert psutil.pid_exists(orphan)
    os.kill(orphan, signal.SIGCONT)
    await starting
    assert not psutil.pid_exists(orphan)
    assert await answer(postgres, "SELECT 1") == 1


async def connect_until_refused(url: str) -> None:
    async with asyncio.timeout(10):
        while True:
            await (await asyncpg.connect(url)).close()


async def test_who_is_connected_is_served_when_the_supervisor_is_gone(
    data_dir: Path, supervised: Make
) -> None:
    supervisor, _ = run_a_supervisor(data_dir)
    url = EmbeddedPostgres(data_dir, data_dir / "log").recorded_url()
    connection = await asyncpg.connect(url)
    try:
        with supervisor:
            supervisor.kill()
        with pytest.raises(asyncpg.CannotConnectNowError, match="shutting down"):
            await connect_until_refused(url)
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()
    until_nobody_works_in(data_dir / "postgresql" / "data")


async def test_who_stays_connected_is_disconnected_by_the_end_of_what_is_left(data_dir: Path) -> None:
    supervisor, orphan = run_a_supervisor(data_dir)
    connection = await asyncpg.connect(EmbeddedPostgres(data_dir, data_dir / "log").recorded_url())
    with supervisor:
        supervisor.kill()
    await leftovers.end(data_dir / "postgresql")
    assert not psutil.pid_exists(orphan)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()


async def test_two_supervisors_do_not_share_a_cluster(data_dir: Path, supervised: Make) -> None:
    await started(supervised(data_dir))
    with pytest.raises(Conflict, match=f"in use by process {os.getpid()}"):
        await supervised(data_dir).prepare()


async def test_a_stale_pid_file_that_names_a_foreign_process_is_no_obstacle(
    data_dir: Path, supervised: Make
) -> None:
    data = data_dir / "postgresql" / "data"
    owner = data.stat()
    with subprocess.Popen(["/bin/sleep", "60"], user=owner.st_uid, group=owner.st_gid) as foreign:
        pid_file = data / "postmaster.pid"
        pid_file.write_text(f"{foreign.pid}\n{data}\n0\n15432\n\n127.0.0.1\n    12345         1\nready   \n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        postgres = await started(supervised(data_dir))
        assert await answer(postgres, "SELECT 1") == 1
        assert foreign.poll() is None
        foreign.kill()


async def test_a_failed_start_says_why_and_where_to_read_more(data_dir: Path, supervised: Make) -> None:
    (data_dir / "postgresql" / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    postgres = supervised(data_dir)
    await postgres.prepare()
    with pytest.raises(GPUStackError) as raised:
        await postgres.start()
    assert "configuration file" in str(raised.value)
    assert "postgresql.log" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert postgres.pid is None


async def test_the_log_is_cut_when_it_has_grown_large(data_dir: Path, supervised: Make) -> None:
    postgres = supervised(data_dir)
    postgres.log.path.parent.mkdir(exist_ok=True)
    with postgres.log.path.open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    await started(postgres)
    assert postgres.log.size() < 100_000
    assert postgres.log.path.with_name("postgresql.log.1").stat().st_size == 17 * 1024 * 1024
