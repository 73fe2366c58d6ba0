"""What an engine sends becomes an answer, or ends the connection."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gpustack.dataplane.http import Exchange, Failure, Limits, Stage, Upstream
from gpustack.dataplane.http.engine import EngineConnection
from gpustack.plugin.routing import Timeouts
from support.http_bytes import BAD_ANSWERS, GOOD_ANSWERS

from .conftest import Clock, Transport

ADDRESS = ("127.0.0.1", 9)


@dataclass
class Taken:
    """A sink that remembers."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    raw: bytes = b""
    ends: list[bool] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def on_head(self, status, headers, raw_head):
        assert not self.status
        self.status, self.headers = status, headers

    def on_data(self, body, raw):
        assert self.status
        self.body += body
        self.raw += raw

    def on_end(self, clean):
        self.ends.append(clean)

    def on_fail(self, failure):
        assert not self.status
        self.failures.append(failure)

    @property
    def whole(self) -> bool:
        assert len(self.ends) + len(self.failures) <= 1
        return self.ends == [True]


class Asked:
    """A request that has been sent."""

    def __init__(self, head: bytes = b"GET / HTTP/1.1\r\n\r\n", body: bytes = b"", **limits: int) -> None:
        self.upstream = Upstream(Limits(**limits))
        self.upstream.clock = self.clock = Clock()
        self.transport = Transport()
        self.connection = EngineConnection(self.upstream, ADDRESS)
        self.connection.connection_made(self.transport)
        self.sink = Taken()
        self.exchange = Exchange(self.upstream, ADDRESS, head, body, self.sink, Timeouts())
        self.upstream._send(self.connection, self.exchange)

    def hears(self, data: bytes, size: int = 1 << 20) -> Taken:
        for at in range(0, len(data), size):
            if not self.transport.is_closing():
                self.connection.data_received(data[at : at + size])
        return self.sink

    def ends(self, error: Exception | None = None) -> Taken:
        self.connection.connection_lost(error)
        return self.sink

    @property
    def kept(self) -> bool:
        return bool(self.upstream._idle.get(ADDRESS)) and not self.transport.is_closing()


@pytest.mark.parametrize("name", BAD_ANSWERS)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_what_is_no_answer_ends_the_connection(name, size):
    asked = Asked()
    asked.hears(BAD_ANSWERS[name], size)
    assert asked.transport.aborted
    assert not asked.kept
    asked.ends()
    if size > 5:
        assert not asked.sink.whole, "the excess came with it, so that none of it is believed"
        assert asked.sink.failures or asked.sink.ends == [False]


@pytest.mark.parametrize("name", GOOD_ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_an_answer_is_read_in_pieces_of_any_size(name, size):
    data, status, body, kept = GOOD_ANSWERS[name]
    asked = Asked()
    sink = asked.hears(data, size)
    assert (sink.status, sink.body, sink.whole) == (status, body, True)
    assert data.endswith(sink.raw)
    assert asked.kept is kept
    assert not asked.upstream.active


def test_an_answer_without_framing_ends_with_the_connection():
    asked = Asked()
    sink = asked.hears(b"HTTP/1.1 200 OK\r\n\r\nhel")
    asked.hears(b"lo")
    assert not sink.ends
    asked.ends()
    assert (sink.body, sink.whole) == (b"hello", True)
    assert not asked.kept


def test_an_answer_without_framing_is_broken_when_the_connection_breaks():
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\n\r\nhel")
    assert asked.ends(ConnectionResetError()).ends == [False]


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_half_an_answer_is_told_from_a_whole_one(framing):
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nhel")
    sink = asked.ends()
    assert sink.ends == [False]
    assert asked.exchange.failure == Failure(
        Stage.BODY, True, "ended the connection in the middle of its answer"
    )


def test_half_a_head_is_a_failure():
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\nConte")
    sink = asked.ends()
    assert sink.failures == [Failure(Stage.HEAD, True, "ended the connection before it answered")]


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked", b"X: y"])
def test_an_answer_to_head_has_no_body(framing):
    asked = Asked(b"HEAD / HTTP/1.1\r\n\r\n")
    sink = asked.hears(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
    assert (sink.body, sink.raw, sink.whole) == (b"", b"", True)


@pytest.mark.parametrize("excess", [b"hello", b"0\r\n\r\n", b"\r\n"])
def test_a_body_after_an_answer_to_head_is_excess(excess):
    asked = Asked(b"HEAD / HTTP/1.1\r\n\r\n")
    sink = asked.hears(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + excess)
    assert not sink.whole
    assert asked.transport.aborted


def test_a_connection_can_be_used_again_after_head():
    asked = Asked(b"HEAD / HTTP/1.1\r\n\r\n")
    asked.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert asked.kept
    second = Taken()
    exchange = asked.upstream.request(ADDRESS, b"GET / HTTP/1.1\r\n\r\n", b"", second, Timeouts())
    asked.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert exchange.ended
    assert second.body == b"hello"


def test_bytes_that_nobody_asked_for_end_an_unused_connection():
    asked = Asked()
    asked.hears(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert asked.kept
    asked.connection.data_received(b"\r\n")
    assert asked.transport.aborted
    assert not asked.kept


@pytest.mark.parametrize(
    "piece",
    [b"X: " + b"a" * 1000 + b"\r\n", b"X: y\r\n" * 200, b"a" * 1000],
    ids=["fields", "small fields", "a field"],
)
def test_a_head_without_end_is_given_up(piece):
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\n")
    heard = 0
    while not asked.transport.aborted:
        asked.connection.data_received(piece)
        heard += len(piece)
    assert heard < 70_000
    assert asked.sink.failures[0].message == "sent an endless head"


def test_a_head_that_is_too_large_is_given_up_in_one_read():
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n")
    assert asked.sink.failures[0].message == "sent an endless head"


def test_too_many_fields_are_given_up():
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\n" + b"a:\r\n" * 300 + b"Content-Length: 0\r\n\r\n")
    assert asked.sink.failures[0].message == "sent too many headers"


def test_interim_answers_without_end_are_given_up():
    asked = Asked()
    heard = 0
    while not asked.transport.aborted:
        asked.connection.data_received(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
        heard += 250
    assert heard < 70_000
    assert asked.sink.failures


@pytest.mark.parametrize(
    "piece", [b"1;" + b"a" * 1000, b"0\r\nX: " + b"a" * 1000], ids=["extension", "trailer"]
)
def test_extensions_and_trailers_without_end_are_given_up(piece):
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + piece)
    heard = 0
    while not asked.transport.aborted:
        asked.connection.data_received(b"a" * 1000)
        heard += 1000
    assert heard < 70_000
    assert asked.sink.ends == [False]


def test_an_end_after_an_interim_answer_is_no_silent_one():
    asked = Asked()
    asked.connection.reused = True
    asked.hears(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert asked.ends().failures[0].started


def test_each_step_has_its_time():
    asked = Asked()
    assert asked.connection.due == asked.clock.now + 600
    asked.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh")
    assert asked.connection.due == asked.clock.now + 120
    asked.clock.now += 100
    asked.hears(b"e")
    assert asked.connection.due == asked.clock.now + 120
    asked.exchange.pause()
    assert asked.connection.due == float("inf")
    assert asked.transport.paused
    asked.exchange.resume()
    assert asked.connection.due == asked.clock.now + 120
    asked.connection.time_out()
    assert asked.sink.ends == [False]
    assert asked.exchange.failure is not None
    assert asked.exchange.failure.timed_out


def test_who_cancels_hears_nothing_more():
    asked = Asked()
    asked.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh")
    asked.exchange.cancel()
    assert asked.transport.aborted
    asked.ends()
    asked.exchange.cancel()
    assert asked.sink.ends == []
    assert not asked.upstream.active


def test_who_cancels_at_the_head_gets_no_body():
    asked = Asked()
    asked.sink.on_head = lambda *args: asked.exchange.cancel()  # type: ignore[method-assign]
    asked.hears(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert asked.sink.body == b""
    assert asked.transport.aborted


def test_an_answer_before_the_request_was_taken_does_not_keep_the_connection():
    asked = Asked(body=b"x" * 100_000)
    asked.transport.full = 50_000
    asked.hears(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert asked.sink.whole
    assert asked.transport.aborted


def test_fields_are_the_same_from_memory():
    asked = Asked()
    data = b"HTTP/1.1 200 OK\r\nServer:  x \r\nX-Long: " + b"a" * 500 + b"\r\nContent-Length: 0\r\n\r\n"
    expected = [(b"server", b"x"), (b"x-long", b"a" * 500), (b"content-length", b"0")]
    assert asked.hears(data).headers == expected
    again = Asked()
    again.upstream.fields = asked.upstream.fields
    assert again.hears(data).headers == expected


def test_memory_of_fields_is_bounded():
    asked = Asked()
    for at in range(2000):
        asked.upstream.fields.parse(b"HTTP/1.1 200 OK\r\nX: %d\r\n\r\n" % at)
    assert len(asked.upstream.fields._known) <= 512
