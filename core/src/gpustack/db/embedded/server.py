"""One embedded PostgreSQL, from its files to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from gpustack.db.embedded import account as accounts
from gpustack.db.embedded import binaries, cluster, leftovers
from gpustack.db.embedded import port as ports
from gpustack.db.embedded.account import Account
from gpustack.db.embedded.binaries import Binaries
from gpustack.db.embedded.child import Child, command
from gpustack.db.embedded.log import ServerLog
from gpustack.db.embedded.options import options
from gpustack.kit.errors import Conflict, GPUStackError
from gpustack.kit.locks import FileLock
from gpustack.kit.net import LOOPBACK

log = logging.getLogger(__name__)

#: Seconds between looks at whether PostgreSQL is ready (it needs about 40 ms), and at the size of its log.
_LOOK = 0.005
_LOG_LOOK = 600.0
#: Reasons that pass by themselves, while remains of an earlier PostgreSQL are ending.
_PASSING = ("lock file", "shared memory block", "is being used", "semaphore")
_PORT_TAKEN = ("could not create any TCP/IP sockets", "could not bind", "Address already in use")


class EmbeddedPostgres:
    """PostgreSQL in ``data_dir/postgresql``, logging to ``log_dir/postgresql.log``.

    ``bin_dir`` names a folder with PostgreSQL's programs instead of the one that is found; ``user`` the user that it
    runs as when we are root. Nothing happens before :meth:`prepare`. After its end it can be started again.
    """

    def __init__(
        self, data_dir: Path, log_dir: Path, *, bin_dir: Path | None = None, user: str | None = None
    ) -> None:
        self.folder = data_dir.absolute() / "postgresql"
        self.data = self.folder / "data"
        self.log = ServerLog(log_dir.absolute() / "postgresql.log")
        self._configured = bin_dir.absolute() if bin_dir is not None else None
        self._user = user
        self._lock = FileLock(self.folder / "lock")
        self._port_record = self.folder / "port"
        self._account: Account | None = None
        self._binaries: Binaries | None = None
        self._password = ""
        self._port = 0
        self._end: asyncio.Task[str] | None = None
        self._child: Child | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """The database's URL with its password; valid once it is started."""
        return _url(self._password, self._port)

    def recorded_url(self) -> str:
        """Return the URL of the one that runs here, started by another process; "" when nothing says where."""
        password, port = (
            cluster.recorded_password(self.folder / "password"),
            ports.recorded(self._port_record),
        )
        return _url(password, port) if password and port is not None else ""

    @property
    def pid(self) -> int | None:
        """The process number of the running postmaster, None when none runs."""
        return self._child.process.pid if self._child is not None else None

    @property
    def version(self) -> str:
        """The version as in "18.6"; "" before :meth:`prepare`."""
        return self._binaries.version if self._binaries is not None else ""

    async def prepare(self) -> None:
        """Find the programs and make the cluster if there is none: 0.6 s the first time, 0.02 s later.

        Also ends what an earlier one left running. Raises GPUStackError with one line: no programs, files of another
        major version (NewerData when newer), a folder that cannot be reached, Conflict when another holds it.
        """
        self._open_folder()
        if not self._lock.acquire():
            raise Conflict(f"the database in {self.folder} is in use by process {self._lock.holder()}")
        try:
            await self._prepare()
        except BaseException:
            self._lock.release()
            raise

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Ours, so whatever the umask says: the user that PostgreSQL runs as passes through.
            self.folder.chmod(0o711)
        except OSError as error:
            raise GPUStackError(
                f"{self.folder} cannot be used: {error.strerror}; change its owner"
            ) from error

    async def _prepare(self) -> None:
        major = cluster.major_of(self.data)
        self._account = account = accounts.choose(self.data, named=self._user)
        if account is not None:
            await accounts.check_reachable(self.folder, account)
        found = await binaries.locate(self.folder, configured=self._configured, account=account, major=major)
        self._binaries = found
        password_file = self.folder / "password"
        if major is None:
            self._password = await cluster.create(self.data, password_file, found, account)
            return
        cluster.check_version(self.data, major, found)
        cluster.discard_unfinished(self.folder)
        await leftovers.clear(self.data)
        if account is not None:
            await asyncio.to_thread(accounts.own, self.data, account)
        self._password = await cluster.read_password(self.data, password_file, found, account)

    def argv(self) -> list[str]:
        """Return the command line of ``postgres`` itself, for the port chosen last. Needs :meth:`prepare`."""
        found = self._prepared()
        program = str(found.bin_dir / "postgres")
        return [program, "-D", str(self.data), *options(found.major, self._port)]

    def command(self) -> list[str]:
        """Return :meth:`argv` in the wrapper that changes the user and ends PostgreSQL with this process (Linux)."""
        return command(self.argv(), self._account)

    def _prepared(self) -> Binaries:
        if self._binaries is None:
            raise RuntimeError("prepare() comes before anything else")
        return self._binaries

    async def start(self, *, timeout: float = 60.0) -> None:
        """Start it and return when it accepts connections, 0.05 s later.

        A taken port is exchanged for another, and remains of an earlier one are waited for, for ``timeout`` seconds
        in all (a recovery after a crash counts too). Raises GPUStackError with the reason when it does not come up.
        """
        self._prepared()
        if self._child is not None:
            raise RuntimeError("PostgreSQL runs already")
        self._stopping = False
        deadline = asyncio.get_running_loop().time() + timeout
        taken: set[int] = set()
        while True:
            reason = await self._attempt(taken, deadline)
            if reason is None:
                break
            if any(mark in reason for mark in _PORT_TAKEN):
                taken.add(self._port)
            elif not any(mark in reason for mark in _PASSING):
                raise GPUStackError(
                    f"the embedded database does not start: {reason}; its log is {self.log.path}"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise GPUStackError(f"the embedded database does not start within {timeout:.0f} s: {reason}")
            await asyncio.sleep(0.1)
        ports.remember(self._port_record, self._port)

    async def _attempt(self, taken: set[int], deadline: float) -> str | None:
        """Start it once; return None when it is ready, else why it is not. Nothing runs in that case."""
        await leftovers.clear(self.data)
        self._port = ports.choose(self._port_record, avoid=taken)
        self.log.cap()
        offset = self.log.size()
        with self.log.open() as sink:
            child = await Child.spawn(
                self.argv(), self._account, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        self._child = child
        self._end = asyncio.create_task(self._supervise(child, offset), name="postgresql")
        try:
            while not self._ready(child.process.pid):
                if self._end.done():
                    return self._end.result()
                if asyncio.get_running_loop().time() > deadline:
                    await self._halt()
                    return "it is not ready in time"
                await asyncio.sleep(_LOOK)
        except BaseException:
            await self._halt()
            raise
        return None

    def _ready(self, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return False
        # A file of the process before us says nothing about this one.
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    async def _supervise(self, child: Child, offset: int) -> str:
        """Return why PostgreSQL ended; meanwhile keep its log small."""
        waiting = asyncio.ensure_future(child.wait())
        while not (await asyncio.wait({waiting}, timeout=_LOG_LOOK))[0]:
            try:
                await asyncio.to_thread(self.log.cap)
            except OSError as error:
                log.warning("%s cannot be cut: %s", self.log.path, error.strerror)
        self._child = None
        return self._explain(waiting.result(), offset)

    def _explain(self, status: int, offset: int) -> str:
        if self._stopping:
            return "PostgreSQL was stopped"
        if status < 0:
            return f"PostgreSQL was ended by {signal.Signals(-status).name}"
        return self.log.reason_since(offset) or f"PostgreSQL ended with exit status {status}"

    async def wait(self) -> str:
        """Return in one line why PostgreSQL ended, once it has; at once when it has already.

        May be cancelled without consequence, and called by several at a time. Needs :meth:`start`.
        """
        if self._end is None:
            raise RuntimeError("start() comes before wait()")
        return await asyncio.shield(self._end)

    async def stop(self, *, grace: float = 5.0) -> None:
        """End it: disconnect clients and stop cleanly, after ``grace`` seconds at once, then by force.

        Without effect when it does not run. Afterwards the cluster is free for another supervisor; call
        :meth:`prepare` before starting again.
        """
        await self._halt(grace=grace)
        self._lock.release()

    async def _halt(self, *, grace: float = 5.0) -> None:
        self._stopping = True
        for number, seconds in ((signal.SIGINT, grace), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 10.0)):
            if self._child is None or self._end is None:
                return
            self._child.signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._end)


def _url(password: str, port: int) -> str:
    # Loopback needs no TLS, and the driver would otherwise ask for it first at each connection.
    return f"postgresql://{cluster.ROLE}:{quote(password)}@{LOOPBACK}:{port}/{cluster.ROLE}?sslmode=disable"
