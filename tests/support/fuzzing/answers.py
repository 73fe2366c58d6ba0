"""What an engine sends: an answer is whole when a strict reader finds it so, and its raw bytes are what came."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpustack.dataplane.http import Exchange, Failure, Limits, Upstream
from gpustack.dataplane.http.engine import EngineConnection
from gpustack.plugin.routing import Timeouts
from support import strict_http
from support.fuzzing.cuts import ways
from support.http_bytes import BAD_ANSWERS, GOOD_ANSWERS

WORDS = (
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 \r\n", b" 304 "),
    *(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"Connection: close\r\n"),
    *(b"Connection: keep-alive\r\n", b"Content-Type: text/event-stream\r\n", b"Upgrade: x\r\n", b"\r\n\r\n", b"\r\n"),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b";a=b", b"\n", b"\r", b"HTTP/1.1 101 \r\n", b" 103 ", b"data: x\n\n"),
)  # fmt: skip
_ADDRESS = ("127.0.0.1", 9)
_TIGHT = Limits(answer_head_bytes=80, answer_headers=3, answer_quiet_bytes=40)


def seeds() -> Iterable[bytes]:
    """Return the answers that other tests know."""
    yield from BAD_ANSWERS.values()
    for data, *_ in GOOD_ANSWERS.values():
        yield data
    yield b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nuntil the end"


class _Socket:
    def fileno(self) -> int:
        raise AssertionError


class _Transport:
    def __init__(self) -> None:
        self.closed = False

    def get_extra_info(self, name: str) -> Any:
        return _Socket()

    def write(self, data: bytes) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@dataclass
class _Sink:
    """Takes an answer, and knows the order in which it may be told of it."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head: bytes = b""
    body: bytes = b""
    raw: bytes = b""
    ends: list[bool] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]], raw_head: bytes) -> None:
        assert not self.status
        assert not self.over
        self.status, self.headers, self.head = status, headers, raw_head

    def on_data(self, body: bytes, raw: bytes) -> None:
        assert self.status
        assert not self.over
        self.body += body
        self.raw += raw

    def on_end(self, clean: bool) -> None:
        assert self.status
        assert not self.over
        self.ends.append(clean)

    def on_fail(self, failure: Failure) -> None:
        assert not self.status
        assert not self.over
        self.failures.append(failure)

    @property
    def over(self) -> bool:
        return bool(self.ends or self.failures)


class _Heard:
    """What became of one request whose connection brought these pieces."""

    def __init__(self, pieces: Sequence[bytes], *, head_only: bool, limits: Limits | None = None) -> None:
        self.upstream = Upstream(limits)
        self.upstream.clock = lambda: 0.0
        self.transport = _Transport()
        self.connection = connection = EngineConnection(self.upstream, _ADDRESS)
        connection.connection_made(self.transport)  # type: ignore[arg-type]  # as much of one as is used
        self.sink = _Sink()
        head = b"%b / HTTP/1.1\r\n\r\n" % (b"HEAD" if head_only else b"GET")
        self.upstream._send(connection, Exchange(self.upstream, _ADDRESS, head, b"", self.sink, Timeouts()))
        self.whole_after: int | None = None
        self.taken = 0
        for piece in pieces:
            if self.transport.closed:
                break
            connection.data_received(piece)
            self.taken += len(piece)
            if self.sink.ends == [True] and self.whole_after is None:
                self.whole_after = self.taken
        self.kept = bool(self.upstream._idle.get(_ADDRESS)) and not self.transport.closed

    def end(self) -> None:
        """The engine ends the connection."""
        if not self.sink.over:
            self.connection.connection_lost(None)
        assert self.sink.over
        assert not self.upstream.active


def run(data: bytes) -> None:
    """Hear ``data`` in several ways, as the answer to GET and to HEAD."""
    for head_only in (False, True):
        whole = _Heard([data], head_only=head_only)
        _against_strict(data, whole, head_only)
        for pieces in ways(data):
            other = _Heard(pieces, head_only=head_only)
            _against_strict(data, other, head_only)
            assert other.kept == whole.kept, "another cut leaves another connection"
            if whole.sink.ends == [True] or not whole.sink.over:
                assert _seen(other) == _seen(whole), "another cut is heard as something else"
            other.end()
        whole.end()
        for pieces in ([data], *ways(data)):
            tight = _Heard(pieces, head_only=head_only, limits=_TIGHT)
            assert len(tight.sink.head) <= _TIGHT.answer_head_bytes + 4
            assert len(tight.sink.headers) <= _TIGHT.answer_headers
            assert len(tight.connection._held) <= _TIGHT.answer_head_bytes + 4
            tight.end()


def _seen(heard: _Heard) -> object:
    sink = heard.sink
    return sink.status, sink.headers, sink.head, sink.body, sink.raw, sink.ends, bool(sink.failures)


def _against_strict(data: bytes, heard: _Heard, head_only: bool) -> None:
    sink = heard.sink
    if not sink.status:
        assert not sink.ends
        return
    at = data.find(sink.head)
    assert at >= 0, "the head is not what came"
    assert data.startswith(sink.head + sink.raw, at), "the bytes to pass on are not those that came"
    if sink.ends == [True]:
        # All of what was passed on is this answer, to the last byte.
        strict = strict_http.answer_in(data, head_only=head_only)
        assert (int(strict.first[0]), strict.body) == (sink.status, sink.body)
        assert list(strict.headers) == sink.headers
        assert data[strict.start : strict.end] == sink.head + sink.raw
        if heard.kept:
            assert strict.end == len(data), "a connection is kept on which more has come"
            assert strict.keep_alive, "a connection is kept that the engine ends"
    elif not sink.over:
        _begun(data, sink, head_only)


def _begun(data: bytes, sink: _Sink, head_only: bool) -> None:
    """What has been passed on of an answer that goes on is its beginning."""
    with contextlib.suppress(strict_http.More):
        strict = strict_http.answer_in(data, head_only=head_only)
        raise AssertionError(f"an answer of {strict.end} bytes has not been taken for whole")
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in sink.headers):
        return
    strict = strict_http.answer_in(data, head_only=head_only, closed=True)
    assert strict.body == sink.body
