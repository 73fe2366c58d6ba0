"""Clients of a gateway: ``gateway_load.py PORT KIND CONNECTIONS SECONDS [RATE]`` prints what they saw as JSON.

``KIND`` is ``chat`` (1 KB), ``long`` (34 KB) or ``stream``. Each connection asks again as soon as it has its answer;
with ``RATE``, so many requests begin in a second over all connections, at even distances, and times count from when
one was to begin. ``huge`` sends bodies of 10 MB one after the other, with pauses.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from typing import cast

import uvloop

KEYS, MODELS = 10_000, 500
SIZES = {"chat": 900, "stream": 900, "long": 34_000, "huge": 10 << 20}
#: Seconds between two huge bodies.
HUGE_PAUSE = 0.15


def key(number: int) -> str:
    """Return one of the keys."""
    return f"sk-{number:044d}"


def request(kind: str, number: int) -> bytes:
    """Return one whole request, as OpenAI's client for Python sends it."""
    words = "You are a helpful assistant for customers of a large shop. "
    model = f"model-{number % MODELS}"
    system = f"For {model}: " + words * (SIZES[kind] // len(words) + 1)
    body = json.dumps(
        {
            "messages": [
                {"role": "system", "content": system[: SIZES[kind]]},
                {"role": "user", "content": f"Where is order {number:08d}, please? It was sent last week."},
            ],
            "model": model,
            "temperature": 0.7,
            "stream": kind == "stream",
        },
        separators=(",", ":"),
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway:8080\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
        b"User-Agent: OpenAI/Python 2.8.1\r\nX-Stainless-Lang: python\r\nX-Stainless-Async: false\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
    ) % (key(number % KEYS).encode(), len(body), body)


class Load:
    """What all connections share."""

    def __init__(self, kind: str) -> None:
        self.streams = kind == "stream"
        self._requests = [
            request(kind, random.randrange(1 << 24)) for _ in range(200 if kind == "long" else 4000)
        ]
        self._next = 0
        self.done = self.bad = self.chunks = 0
        #: Of each request, when it began and how long it took.
        self.times: list[tuple[float, float]] = []
        self.over = False

    def request(self) -> bytes:
        """Return the next request."""
        self._next = (self._next + 1) % len(self._requests)
        return self._requests[self._next]


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, *, paced: bool) -> None:
        self._load = load
        self._paced = paced
        self._due: list[float] = []
        self._seen = b""
        self._left = 0
        self._began = 0.0
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses of it

    def begin(self, at: float) -> None:
        """Send a request that was to begin at ``at``, or send it after the present one."""
        if self._busy:
            self._due.append(at)
            return
        self._busy = True
        self._began = at
        self._transport.write(self._load.request())

    def data_received(self, data: bytes) -> None:
        if self._load.streams:
            self._stream(data)
            return
        if not self._left:
            self._seen += data
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._seen[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self._load.bad += 1
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\r\n", at)
            self._left = end + 4 + int(head[at : stop if stop > 0 else None]) - len(self._seen)
            self._seen = b""
        else:
            self._left -= len(data)
        if not self._left:
            self._ended()

    def _stream(self, data: bytes) -> None:
        self._load.chunks += data.count(b"data: {")
        self._seen = (self._seen + data)[-16:]
        if self._seen.endswith(b"\r\n0\r\n\r\n") or self._seen == b"0\r\n\r\n":
            self._ended()

    def _ended(self) -> None:
        load = self._load
        self._busy = False
        self._seen = b""
        load.done += 1
        now = time.perf_counter()
        load.times.append((self._began, now - self._began))
        if self._due:
            self.begin(self._due.pop(0))
        elif not self._paced and not load.over:
            self.begin(now)


async def _play(port: int, kind: str, connections: int, seconds: float, rate: float) -> Load:
    loop = asyncio.get_running_loop()
    load = Load(kind)
    clients = [
        (await loop.create_connection(lambda: Client(load, paced=rate > 0), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    began = time.perf_counter()
    if not rate:
        for client in clients:
            client.begin(time.perf_counter())
            if load.streams:
                # Not all in step: an engine's streams are not.
                await asyncio.sleep(0.5 / connections)
        await asyncio.sleep(seconds)
    number = 0
    while rate and (now := time.perf_counter()) - began < seconds:
        while (due := began + number / rate) <= now:
            clients[number % connections].begin(due)
            number += 1
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    load.over = True
    await asyncio.sleep(0.1 if not load.streams else 0)
    return load


def _huge(port: int, seconds: float) -> None:
    data = request("huge", 1)
    end = time.perf_counter() + seconds
    spans = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while time.perf_counter() < end:
            began = time.perf_counter()
            sock.sendall(data)
            answer = sock.recv(65536)
            while answer and not answer.endswith(b"}") and not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += sock.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a huge body was answered with {answer[:60]!r}")
            spans.append((began, time.perf_counter()))
            time.sleep(HUGE_PAUSE)
    print(json.dumps({"spans": spans}))


def _quantile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


def main() -> None:
    """Play, and print."""
    port, kind, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if kind == "huge":
        _huge(port, seconds)
        return
    load = uvloop.run(_play(port, kind, connections, seconds, float((*sys.argv, "0")[5])))
    times = sorted(took for _, took in load.times)
    found: dict[str, object] = {"done": load.done, "bad": load.bad, "chunks": load.chunks}
    found |= {"p50": _quantile(times, 0.5), "p99": _quantile(times, 0.99)}
    if len(sys.argv) > 5:
        found["times"] = load.times
    print(json.dumps(found))


if __name__ == "__main__":
    main()
