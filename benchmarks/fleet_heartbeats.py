"""A thousand workers on one server: the share of a core that it takes to hear of them, and what it does to the database.

Every simulated worker speaks real HTTP over connections of its own, as a real one does: it proves its key and
registers, watches its instances, sends a sign of life every 10 s and the whole status of 8 GPUs every 30 s. The
server is a real one over a real database, and its gateway is in front of it.

    fleet_heartbeats.py [SECONDS [WORKERS]]     60 s and 1,000 workers unless told otherwise

Floor: what is measured beside the goals is how much of the same core sending the same bytes to a bare uvicorn takes.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import asyncpg
from common import Running, gpustack, new_data_dir, report
from fleet_list import registration

from gpustack.kit.signing import new_key, public_key, sign
from gpustack.schemas import WorkerProof, WorkerRegistration

SECONDS, WORKERS = 60, 1000
EVERY, FULL = 10.0, 3
#: Seconds in which the fleet comes to rest before anything is measured.
_SETTLE = 12.0
_BEGAN = time.perf_counter()
_AT_ONCE = 32
#: So many register while nothing else happens.
_MEASURED = 200


@dataclass
class Link:
    """One connection to the server, kept; opened again when it broke."""

    host: str
    port: int
    broken: int = 0
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        for attempt in (1, 2):
            try:
                return await self._send(method, path, body, headers)
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
                self.close()
                if attempt == 2:
                    raise
        raise AssertionError

    async def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port)
        reader, writer = self._streams
        writer.write(head(method, path, self.host, len(body), headers) + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        status, length = int(answer[9:12]), 0
        for line in answer.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return status, await reader.readexactly(length)

    async def follow(self, path: str, **headers: str) -> None:
        """Read a stream for ever."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(head("GET", path, self.host, 0, headers))
            while await reader.read(65536):
                pass
        finally:
            writer.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def head(method: str, path: str, host: str, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: gpustack/bench"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class Simulated:
    """One worker."""

    number: int
    link: Link
    key: str = field(default_factory=new_key)
    credential: str = ""
    session: int = 0
    id: int = 0
    failures: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        said = {"Authorization": f"Bearer {self.credential}"}
        return {**said, "X_GPUStack_Session": str(self.session)} if self.session else said

    async def join(self, token: str) -> None:
        """Register as a worker does at its first start."""
        self.credential, self.session = token, 0
        _, challenged = await self.link.send("POST", "/v2/worker-challenges", **self.headers)
        challenge = json.loads(challenged)["challenge"]
        fields = {**registration(self.number), "start": f"start-{self.number}", "boot": "boot"}
        wanted = WorkerRegistration.model_validate(fields)
        proof = WorkerProof(
            public_key=public_key(self.key),
            challenge=challenge,
            signature=sign(self.key, wanted.signed(challenge)),
        )
        body = json.dumps({**fields, "proof": proof.model_dump()}).encode()
        status, answer = await self.link.send("POST", "/v2/workers", body, **self.headers)
        assert status == 201, answer
        said = json.loads(answer)
        self.id, self.credential, self.session = said["id"], said["token"], said["session"]

    def begin(self) -> None:
        """Do from now on what a worker does that has joined, beginning at a time of its own as in any fleet."""
        wait = random.uniform(0, EVERY)
        work = [self.live(wait), *(self.watch(what, wait) for what in ("model-instances", "model-files"))]
        self.tasks = [asyncio.create_task(each) for each in work]

    async def watch(self, what: str, wait: float) -> None:
        """Follow, after ``wait`` seconds, what the server wants of this worker."""
        await asyncio.sleep(wait)
        while True:
            await self.link.follow(f"/v2/{what}?watch=true&worker_id={self.id}", **self.headers)
            self.failed(f"the watch of {what} ended")
            await asyncio.sleep(1)

    def failed(self, line: str) -> None:
        """Note what went wrong, and when: in seconds since the program began."""
        self.failures.append(f"{time.perf_counter() - _BEGAN:.0f} s: {line}")

    async def live(self, wait: float) -> None:
        """Send signs of life for ever, the first after ``wait`` seconds."""
        count = random.randrange(FULL)
        due = time.monotonic() + wait
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += EVERY
            body = b"{}"
            if count % FULL == 0:
                body = json.dumps({"status": registration(self.number, seed=count)["status"]}).encode()
            try:
                status, answer = await self.link.send("POST", "/v2/worker-heartbeat", body, **self.headers)
                if status != 204:
                    self.failed(f"sign of life: {status} {answer[:200]!r}")
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed(f"sign of life: {error!r}")
            count += 1


@dataclass
class Stock:
    """What the database holds: sizes in bytes, and rows."""

    workers: int
    whole: int
    events: int
    updates: int
    hot: int


class Database:
    """The server's database, looked at from beside it."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "postgresql"

    async def stock(self) -> Stock:
        password, port = ((self._folder / name).read_text().strip() for name in ("password", "port"))
        url = f"postgresql://gpustack:{quote(password)}@127.0.0.1:{port}/gpustack?sslmode=disable"
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            row = await connection.fetchrow(
                "SELECT pg_total_relation_size('workers') AS workers, pg_database_size(current_database()) AS whole, "
                "(SELECT value FROM event_counter) AS events, n_tup_upd AS updates, n_tup_hot_upd AS hot "
                "FROM pg_stat_user_tables WHERE relname = 'workers'"
            )
            return Stock(**row)
        finally:
            await connection.close()


def busy(running: Running, name: str) -> float:
    """Return the seconds of processor time that a part of GPUStack has taken so far."""
    taken = 0.0
    for each in running.processes().get(name, []):
        times = each.cpu_times()
        taken += times.user + times.system
    return taken


async def in_turns(work: list[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Do all of it, so many at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(each: Callable[[], Awaitable[None]]) -> None:
        async with gate:
            await each()

    await asyncio.gather(*(one(each) for each in work))


async def states(link: Link, token: str) -> dict[str, int]:
    """Return how many workers are in each state."""
    _, answer = await link.send("GET", "/v2/fleet", Authorization=f"Bearer {token}")
    found: dict[str, int] = json.loads(answer)["workers"]
    return found


async def measure(running: Running, seconds: int, count: int) -> None:
    """Run the fleet and print the figures."""
    where = urlsplit(running.url)
    assert where.hostname is not None
    assert where.port is not None
    token = (running.data_dir / "token").read_text().strip()
    admin = (running.data_dir / "run" / "cli_token").read_text().strip()
    fleet = [Simulated(number, Link(where.hostname, where.port)) for number in range(count)]
    database = Database(running.data_dir)

    # Those that are measured have to begin to live before they would be missed.
    first_ones, others = fleet[:_MEASURED], fleet[_MEASURED:]
    began, before = time.perf_counter(), busy(running, "server")
    await in_turns([lambda each=each: each.join(token) for each in first_ones], _AT_ONCE)
    taken, registering = time.perf_counter() - began, busy(running, "server") - before
    _say_registered(len(first_ones), taken, registering)
    for each in first_ones:
        each.begin()

    async def come(each: Simulated) -> None:
        await each.join(token)
        each.begin()

    await in_turns([lambda each=each: come(each) for each in others], _AT_ONCE)
    await asyncio.sleep(_SETTLE)
    asker, worst = Link(where.hostname, where.port), count
    first, began = await database.stock(), time.perf_counter()
    cpu = {name: busy(running, name) for name in ("server", "gateway", "postgres")}
    half = first
    while (passed := time.perf_counter() - began) < seconds:
        await asyncio.sleep(min(5.0, seconds - passed) + 0.01)
        ready = (await states(asker, admin))["ready"]
        if ready < min(worst, count):
            print(f"{'':44} {time.perf_counter() - _BEGAN:.0f} s: {count - ready} are missed", flush=True)
        worst = min(worst, ready)
        if passed < seconds / 2:
            half = await database.stock()
    passed = time.perf_counter() - began
    share = {name: (busy(running, name) - taken) / passed * 100 for name, taken in cpu.items()}
    last = await database.stock()
    tasks = [task for each in fleet for task in each.tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    _say(share, count, worst, (first, half, last), passed)
    failures = [line for each in fleet for line in each.failures]
    if failures:
        said = [f"{times} x {line}" for line, times in Counter(failures).most_common(20)]
        raise SystemExit(f"{len(failures)} requests failed:\n" + "\n".join(said))


def _say_registered(count: int, taken: float, cpu: float) -> None:
    title = f"register {count} workers: the server's CPU for one"
    report(title, cpu / count * 1000, "ms", floor=0, floor_name="", goal=10)
    print(f"{'':44} all of them in {taken:.1f} s, {_AT_ONCE} at once", flush=True)


def _say(share: dict[str, float], count: int, worst: int, stocks: tuple[Stock, ...], passed: float) -> None:
    first, half, last = stocks
    report(
        f"hear of {count} workers: the server's core", share["server"], "%", floor=0, floor_name="", goal=25
    )
    print(f"{'':44} beside it: gateway {share['gateway']:.1f} %, postgres {share['postgres']:.1f} %")
    report("workers that were ever missed", count - worst, "", floor=0, floor_name="", goal=0)
    report(
        "events that signs of life made", last.events - first.events, "rows", floor=0, floor_name="", goal=0
    )
    growth = (last.workers - half.workers) / 1e6
    report("growth of the table in the second half", growth, "MB", floor=0, floor_name="", goal=1)
    updates, hot = last.updates - first.updates, last.hot - first.hot
    print(
        f"{'':44} {updates / passed:.0f} row versions/s, {100 * hot / max(1, updates):.0f} % in place; the table "
        f"{first.workers / 1e6:.1f} -> {last.workers / 1e6:.1f} MB, the database "
        f"{first.whole / 1e6:.1f} -> {last.whole / 1e6:.1f} MB",
        flush=True,
    )


def main() -> None:
    """Start a server without a worker of its own, and the fleet."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    count = int(sys.argv[2]) if len(sys.argv) > 2 else WORKERS
    files = 4 * count + 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, most), most))
    with new_data_dir() as data_dir, gpustack(data_dir, "--disable-worker") as running:
        asyncio.run(measure(running, seconds, count))


if __name__ == "__main__":
    main()
