"""Traffic for a GPUStack that is being hurt: many small requests and open streams, each accounted for.

    with load(stack.url, key, "tiny") as traffic:
        ...kill something...
    report = traffic.report
    assert not report.unexplained([kill])

It is a process of its own, so that neither the test's work nor its interpreter lock delays it. A request counts as
sent when its first byte is handed to the system. Times are ``time.monotonic()``, which all processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

#: Seconds that one request may take, restarts of whatever it needs included, with engines that have the processor only
#: when no other test wants it.
PATIENCE = 75.0
#: Keys that the load leaves standing: who looks for growth is not to find its own.
_MOST_KEYS = 100
#: In an event of a stream that has a piece of text.
_TEXT = re.compile(rb'"content": ?"[^"]')

#: What is asked in turn. Half of it is inference, a tenth changes something.
MIX = ("chat", "list models", "chat", "read", "chat", "write", "chat", "readyz", "chat", "read")
INFERENCE = frozenset({"chat", "stream", "list models"})
MANAGEMENT = frozenset({"read", "write", "readyz"})
#: What passes through each process, so that its death may cost what was in flight on it.
PASSES_THROUGH = {
    "gateway": INFERENCE | MANAGEMENT,
    "server": MANAGEMENT,
    "supervisor": MANAGEMENT,
    "postgres": MANAGEMENT,
    "engine": frozenset({"chat", "stream"}),
    "worker": frozenset[str](),
    "door": frozenset[str](),
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request that got no proper answer."""

    kind: str
    sent: float
    ended: float
    why: str


#: Seconds in which the children of a dead supervisor learn of it, and the server stops taking requests.
_TOLD = 0.1


@dataclass(frozen=True, kw_only=True)
class Kill:
    """The death of one process: ``began`` when the signal was sent, ``gone`` when the process was seen dead.

    Until the system has taken its sockets away it still takes requests, so those count as in flight on it.
    """

    what: str
    began: float
    gone: float

    def explains(self, failure: Failure) -> bool:
        """Tell whether the request was under way, through what was killed, when that died."""
        until = self.gone + (_TOLD if self.what == "supervisor" else 0.0)
        in_flight = failure.sent <= until and failure.ended >= self.began
        return in_flight and failure.kind in PASSES_THROUGH[self.what]


@dataclass(frozen=True)
class Unheld:
    """The time in which nobody held the public socket: both who keep it, supervisor and door, were killed at once."""

    began: float
    ended: float

    def explains(self, failure: Failure) -> bool:
        """Tell whether nobody was there to connect to."""
        return "refused" in failure.why.lower() and self.began <= failure.sent <= self.ended


@dataclass
class Report:
    """What became of everything that was sent."""

    answered: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    #: Idle connections that were closed on the server's side and replaced before anything was sent.
    replaced: int = 0
    #: GETs sent on a connection that the server was just closing, and sent again.
    repeated: int = 0
    #: Tokens of prompts and of answers, as the whole answers of models have told them.
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    #: Pieces with text of the streams that were cut off.
    cut: int = 0
    #: The longest time for one answer, by kind.
    slowest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    #: How the names of this load's API keys begin.
    prefix: str = ""
    #: Names of API keys that exist as far as the server has said, with their numbers.
    kept: dict[str, int] = field(default_factory=dict)
    #: Names whose creation or deletion was acknowledged by nobody.
    unsure: list[str] = field(default_factory=list)
    #: Names whose deletion was acknowledged.
    deleted: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answered requests per second, streams left out."""
        return sum(count for kind, count in self.answered.items() if kind != "stream") / self.seconds

    def unexplained(self, kills: Sequence[Kill], unheld: Sequence[Unheld] = ()) -> list[Failure]:
        """Return the failures that no death accounts for."""
        causes = [*kills, *unheld]
        return [each for each in self.failures if not any(cause.explains(each) for cause in causes)]

    def account(self, kills: Sequence[Kill], unheld: Sequence[Unheld] = ()) -> str:
        """Tell what no death accounts for, in groups, with the times since the death before it."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for each in self.unexplained(kills, unheld):
            began = max((kill.began for kill in kills if kill.began <= each.ended), default=0.0)
            dead = " and ".join(kill.what for kill in kills if kill.began == began) or "nobody"
            gone = max((kill.gone for kill in kills if kill.began == began), default=0.0)
            group = (dead, each.kind, re.sub(r"\d{2,}", "N", each.why))
            times = f"{each.sent - began:.3f} to {each.ended - began:.3f} s (gone at {gone - began:.3f} s)"
            groups.setdefault(group, []).append(times)
        return "\n".join(
            f"after {what} died, {len(times)} x {kind}, from {', '.join(times[:5])}: {why}"
            for (what, kind, why), times in groups.items()
        )

    def check_rows(self, names: Sequence[str]) -> None:
        """Compare with the API keys that are there: none acknowledged is lost, none comes back, none is twice."""
        there = Counter(name for name in names if name.startswith(self.prefix))
        twice = [name for name, count in there.items() if count > 1]
        lost = [name for name in self.kept if name not in there]
        back = [name for name in self.deleted if name in there]
        strange = [name for name in there if name not in self.kept and name not in self.unsure]
        wrong = {"twice": twice, "lost": lost, "deleted and back": back, "made by nobody": strange}
        assert not any(wrong.values()), wrong


class Traffic:
    """The running load; ``report`` holds everything once the block of :func:`load` has ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.report = Report()
        self.answered = 0
        self.streams = 0
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "report" in said:
                failures = [Failure(**each) for each in said["report"].pop("failures")]
                self.report = Report(**said["report"], failures=failures)
            else:
                self.answered, self.streams = said["answered"], said["streams"]

    def end(self) -> None:
        """Let what is in flight come to its end, and take the report."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE + 15)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(5)


@contextlib.contextmanager
def load(
    url: str, key: str, model: str, *, rate: float = 60.0, streams: int = 32, tokens: int = 1200
) -> Iterator[Traffic]:
    """Send ``rate`` requests a second and keep ``streams`` open until the block ends.

    ``key`` is an administrator's API key; ``model`` answers chats. Each stream asks for ``tokens`` tokens and is opened again when it ends.
    """
    where = urlsplit(url)
    plan = Plan(where.hostname or "", where.port or 80, key, model, rate, streams, tokens)
    with subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps(asdict(plan))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        traffic = Traffic(process)
        try:
            yield traffic
        finally:
            traffic.end()


# The process itself ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to send where."""

    host: str
    port: int
    key: str
    model: str
    rate: float
    streams: int
    tokens: int


class Broken(Exception):
    """The connection ended before the whole answer had come."""


class Line:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        #: The server has said that this answer is the last one on it.
        self.last = False

    @classmethod
    async def open(cls, plan: Plan) -> Line:
        return cls(*await asyncio.open_connection(plan.host, plan.port))

    def ended(self) -> bool:
        """Tell whether the server has closed it meanwhile, as every HTTP client looks before it uses one again."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        return self.writer.is_closing() or bool(select.select([sock], [], [], 0)[0])

    def send(self, plan: Plan, method: str, path: str, body: bytes, *, close: bool) -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nAuthorization: Bearer {plan.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        self.writer.write((head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = int(head.split(" ", 2)[1])
            self.last = "\r\nconnection: close\r\n" in head
            if status == 204:
                return status, b""
            length = head.partition("content-length:")[2].partition("\r\n")[0]
            if not length:
                return status, await self._chunks()
            return status, await self.reader.readexactly(int(length))
        except asyncio.IncompleteReadError as error:
            raise Broken("nothing came" if not error.partial else "the answer was cut off") from error

    async def _chunks(self) -> bytes:
        found = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            found += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return found

    async def stream(self) -> tuple[str, bytes, int]:
        """Read a stream of events to its end; return why it failed, or nothing, how it ended, and its pieces with text."""
        head = (await self.reader.read(64)).decode("latin-1")
        tail, pieces = b"", 0
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(1 << 16):
                # An event is found with the piece in which it ends.
                before = tail.rpartition(b"\n\n")[2]
                pieces += len(_TEXT.findall((before + piece).rpartition(b"\n\n")[0]))
                tail = (tail + piece)[-1500:]
        if b"[DONE]" in tail and b'"error":' not in tail:
            return "", tail, pieces
        return f"{head[9:12] or 'nothing came'}, last: {tail[-300:].decode(errors='replace')}", tail, pieces

    def close(self) -> None:
        self.writer.close()


class Sender:
    """Sends everything and counts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.report = Report(prefix=f"load-{os.getpid()}-")
        self.open_streams = 0
        self._answered: Counter[str] = Counter()
        self._idle: list[Line] = []
        self._numbers = itertools.count()
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Send until standard input ends, then wait for what is in flight."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(self._ending.set)), daemon=True
        ).start()
        sent: set[asyncio.Task[None]] = set()
        streams = [asyncio.create_task(self._keep_streaming(n)) for n in range(self.plan.streams)]
        for number in itertools.count():
            if await self._until(began + number / self.plan.rate):
                break
            task = asyncio.create_task(self._one(MIX[number % len(MIX)], fresh=number % 3 == 0))
            sent.add(task)
            task.add_done_callback(sent.discard)
            if number % 20 == 0:
                self._tell()
        self.report.seconds = time.monotonic() - began
        await asyncio.gather(*sent, *streams)
        self.report.answered = dict(self._answered)
        print(json.dumps({"report": asdict(self.report)}), flush=True)

    async def _until(self, moment: float) -> bool:
        """Wait; tell whether the end has come instead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, moment - time.monotonic())):
                await self._ending.wait()
        return self._ending.is_set()

    def _tell(self) -> None:
        said = {"answered": sum(self._answered.values()), "streams": self.open_streams}
        print(json.dumps(said), flush=True)

    async def _keep_streaming(self, number: int) -> None:
        while not self._ending.is_set():
            body = self._chat(f"stream {number}", self.plan.tokens, stream=True)
            began = time.monotonic()
            try:
                line = await Line.open(self.plan)
                line.send(self.plan, "POST", "/v1/chat/completions", body, close=True)
                self.open_streams += 1
                try:
                    why, tail, pieces = await line.stream()
                    if why:
                        self.report.cut += pieces
                    else:
                        self._count(tail)
                finally:
                    self.open_streams -= 1
                    line.close()
            except OSError as error:
                why = f"{type(error).__name__}: {error}"
            self._note("stream", began, why)
            if why:
                await asyncio.sleep(0.1)

    def _chat(self, text: str, tokens: int, *, stream: bool = False) -> bytes:
        messages = [{"role": "user", "content": text}]
        asked = {"model": self.plan.model, "messages": messages, "max_tokens": tokens, "stream": stream}
        if stream:
            asked["stream_options"] = {"include_usage": True}
        return json.dumps({**asked, "ignore_eos": True}).encode()

    def _count(self, answer: bytes) -> None:
        """Add the usage that an answer tells, the last one of a stream."""
        for place, name in enumerate((b"prompt_tokens", b"completion_tokens")):
            self.report.tokens[place] += int(re.findall(rb'"%b":(\d+)' % name, answer)[-1])

    async def _one(self, kind: str, *, fresh: bool) -> None:
        match kind:
            case "chat":
                await self._ask(
                    kind, "POST", "/v1/chat/completions", self._chat("Hello", 2), b"choices", fresh=fresh
                )
            case "list models":
                await self._ask(kind, "GET", "/v1/models", b"", self.plan.model.encode(), fresh=fresh)
            case "read":
                await self._ask(kind, "GET", "/v2/model-instances", b"", b"items", fresh=fresh)
            case "readyz":
                await self._ask(kind, "GET", "/readyz", b"", b"ok", fresh=fresh)
            case "write":
                await self._write(next(self._numbers), fresh=fresh)

    async def _write(self, number: int, *, fresh: bool) -> None:
        """Make a key; every other time, and always once there are many, delete one that was made before."""
        name = f"{self.report.prefix}{number}"
        self.report.unsure.append(name)
        body = json.dumps({"name": name}).encode()
        answer = await self._ask("write", "POST", "/v2/api-keys", body, name.encode(), fresh=fresh)
        if answer is None:
            return
        self.report.unsure.remove(name)
        self.report.kept[name] = json.loads(answer)["id"]
        if number % 2 or len(self.report.kept) > _MOST_KEYS:
            old, its_id = next(iter(self.report.kept.items()))
            del self.report.kept[old]
            self.report.unsure.append(old)
            if await self._ask("write", "DELETE", f"/v2/api-keys/{its_id}", b"", b"", fresh=fresh) is None:
                return
            self.report.unsure.remove(old)
            self.report.deleted.append(old)

    async def _ask(
        self, kind: str, method: str, path: str, body: bytes, holds: bytes, *, fresh: bool
    ) -> bytes | None:
        """Send one request and return the answer's body; None when it failed, which is noted."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                status, content = await self._exchange(method, path, body, fresh=fresh)
        except (OSError, Broken) as error:
            self._note(kind, began, f"{method} {path}: {type(error).__name__}: {error}")
            return None
        good = status < 300 and holds in content
        if good and kind == "chat":
            self._count(content)
        self._note(kind, began, "" if good else f"{method} {path}: {status} {content[:300].decode()}")
        return content if good else None

    async def _exchange(self, method: str, path: str, body: bytes, *, fresh: bool) -> tuple[int, bytes]:
        line = None if fresh else self._unused()
        used_before = line is not None
        line = line or await Line.open(self.plan)
        try:
            line.send(self.plan, method, path, body, close=fresh)
            answer = await line.answer()
        except (Broken, ConnectionError) as error:
            line.close()
            # What reads only is sent again by every HTTP client when a kept connection turns out to be at its end.
            if used_before and method == "GET" and str(error) != "the answer was cut off":
                self.report.repeated += 1
                return await self._exchange(method, path, body, fresh=True)
            raise
        except BaseException:
            line.close()
            raise
        if fresh or line.last:
            line.close()
        else:
            self._idle.append(line)
        return answer

    def _unused(self) -> Line | None:
        while self._idle:
            line = self._idle.pop()
            if not line.ended():
                return line
            line.close()
            self.report.replaced += 1
        return None

    def _note(self, kind: str, sent: float, why: str) -> None:
        now = time.monotonic()
        if why:
            self.report.failures.append(Failure(kind=kind, sent=sent, ended=now, why=why))
            return
        self._answered[kind] += 1
        self.report.slowest[kind] = max(self.report.slowest.get(kind, 0.0), round(now - sent, 3))


if __name__ == "__main__":
    asyncio.run(Sender(Plan(**json.loads(sys.argv[1]))).run())
