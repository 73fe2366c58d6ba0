"""Readers without sockets: what they are fed is what came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from gpustack.dataplane.http import BodyPlan, HttpServer, Limits, Refusal, Reply, Request
from gpustack.dataplane.http.reader import RequestReader


class Clock:
    """Monotonic seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Recorder:
    """A service that lets everything in, or what ``judge`` says, and remembers."""

    judge: Callable[[Request], Refusal | BodyPlan] = lambda request: BodyPlan()
    begun: list[Request] = field(default_factory=list)
    handled: list[tuple[Request, Reply]] = field(default_factory=list)

    def begin(self, request: Request) -> Refusal | BodyPlan:
        self.begun.append(request)
        return self.judge(request)

    def handle(self, request: Request, reply: Reply) -> None:
        self.handled.append((request, reply))


class Transport:
    """Takes what is written. ``full`` is what the other side has not taken."""

    def __init__(self, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.written = b""
        self.closed = self.aborted = self.eof = self.paused = False
        self.full = 0

    def get_extra_info(self, name: str) -> Any:
        return {"peername": (self.peer, 4000)}.get(name)

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.written += b"".join(pieces)

    def get_write_buffer_size(self) -> int:
        return self.full

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


@dataclass
class Side:
    """One client's connection, up to where its bytes become requests."""

    service: Recorder
    server: HttpServer
    reader: RequestReader
    clock: Clock

    @property
    def statuses(self) -> list[int | None]:
        """What is ready: None for a request that is to be handled, the status for a refused one."""
        return [each.refusal.status if each.refusal else None for each in self.reader.ready]


@pytest.fixture
def make_side() -> Callable[..., Side]:
    """``make_side(judge=…, peer=…, head_bytes=…)``."""

    def make(
        judge: Callable[[Request], Refusal | BodyPlan] | None = None, peer: str = "192.0.2.1", **limits: Any
    ) -> Side:
        service = Recorder() if judge is None else Recorder(judge)
        server = HttpServer(service, Limits(**limits))
        server.clock = clock = Clock()
        return Side(service, server, RequestReader(server, peer, tls=False), clock)

    return make


@pytest.fixture
def side(make_side: Callable[..., Side]) -> Side:
    return make_side()
