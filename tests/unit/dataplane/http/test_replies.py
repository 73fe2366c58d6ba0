"""What goes to a client, byte for byte."""

from __future__ import annotations

import pytest

from gpustack.dataplane.http import BodyPlan, HttpServer, Limits, Refusal, Reply, ServerProtocol

from .conftest import Clock, Recorder, Transport

HTTP_11 = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
HTTP_10 = b"GET /a HTTP/1.0\r\n\r\n"
HTTP_10_KEPT = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n"


class Client:
    """One connection with a transport that remembers."""

    def __init__(self, judge=None, **limits):
        self.service = Recorder() if judge is None else Recorder(judge)
        self.server = HttpServer(self.service, Limits(**limits))
        self.server.date = b"today"
        self.server.clock = self.clock = Clock()
        self.transport = Transport()
        self.protocol = ServerProtocol(self.server)
        self.protocol.connection_made(self.transport)

    def asks(self, data: bytes = HTTP_11) -> Reply:
        before = len(self.service.handled)
        self.protocol.data_received(data)
        return self.service.handled[before][1]

    def took(self) -> bytes:
        written, self.transport.written = self.transport.written, b""
        return written


@pytest.fixture
def client():
    return Client()


def test_a_whole_answer(client):
    client.asks().answer(200, [(b"x", b"y")], b"hello")
    assert client.took() == b"HTTP/1.1 200 OK\r\ndate: today\r\nx: y\r\ncontent-length: 5\r\n\r\nhello"
    assert not client.transport.closed


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_never_have_a_body(client, status):
    client.asks().answer(status, [], b"hello")
    assert client.took().endswith(b"date: today\r\n\r\n")


def test_an_answer_to_head_says_its_length_and_has_no_body(client):
    client.asks(HEAD).answer(404, [], b"hello")
    assert client.took() == b"HTTP/1.1 404 Not Found\r\ndate: today\r\ncontent-length: 5\r\n\r\n"


def test_an_answer_of_unknown_length_comes_in_chunks(client):
    reply = client.asks()
    reply.start(200, [])
    reply.write(b"hello")
    reply.write(b"")
    reply.write(b"!")
    reply.end()
    assert client.took() == (
        b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    )
    assert reply.sent == 6
    assert client.server.bytes_out == 6


@pytest.mark.parametrize("data", [HTTP_10, HTTP_10_KEPT])
def test_an_answer_of_unknown_length_ends_with_the_connection_for_http_1_0(client, data):
    reply = client.asks(data)
    reply.start(200, [])
    reply.write(b"hello")
    reply.end()
    assert client.took() == b"HTTP/1.1 200 OK\r\ndate: today\r\nconnection: close\r\n\r\nhello"
    assert client.transport.closed


def test_http_1_0_is_told_when_the_connection_is_kept(client):
    client.asks(HTTP_10_KEPT).answer(200, [], b"")
    assert client.took().endswith(b"content-length: 0\r\nconnection: keep-alive\r\n\r\n")
    assert not client.transport.closed


def test_who_asks_for_it_is_disconnected(client):
    client.asks(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").answer(200, [], b"")
    assert client.took().endswith(b"connection: close\r\n\r\n")
    assert client.transport.closed


@pytest.mark.parametrize(
    "header", [(b"a b", b"c"), (b"a", b"b\r\nc: d"), (b"a", b"b\nc"), (b"a\r\n", b"b"), (b"", b"b")]
)
def test_headers_that_would_be_two_are_not_sent(client, header):
    reply = client.asks()
    with pytest.raises(ValueError, match="cannot be sent"):
        reply.answer(200, [header], b"")
    assert client.took() == b""
    reply.answer(500, [], b"")
    assert client.took()


def test_an_answer_begins_once_and_ends_once(client):
    reply = client.asks()
    with pytest.raises(RuntimeError):
        reply.end()
    reply.start(200, [], 5)
    with pytest.raises(RuntimeError):
        reply.start(200, [], 5)
    with pytest.raises(RuntimeError):
        reply.write(b"hello!")
    reply.write(b"hello")
    reply.end()
    before = client.took()
    reply.end()
    reply.write(b"more")
    reply.abort()
    assert before
    assert client.took() == b""
    assert not client.transport.is_closing()


def test_an_answer_that_is_too_short_ends_the_connection(client):
    reply = client.asks()
    reply.start(200, [], 5)
    reply.write(b"hell")
    reply.end()
    assert client.transport.closed


def test_a_broken_answer_never_looks_whole(client):
    reply = client.asks()
    reply.start(200, [])
    reply.write(b"x")
    reply.abort()
    assert b"\r\n0\r\n" not in client.took()
    assert client.transport.closed
    old = Client()
    reply = old.asks(HTTP_10)
    reply.start(200, [])
    reply.abort()
    assert old.transport.aborted


def test_a_late_word_does_not_get_into_the_next_answer(client):
    first = client.asks()
    first.answer(200, [], b"first")
    client.took()
    second = client.asks()
    first.write(b"late")
    first.end()
    first.abort()
    assert client.took() == b""
    second.answer(200, [], b"second")
    assert client.took().endswith(b"second")


def test_pipelined_requests_are_answered_in_their_order(client):
    first = client.asks(HTTP_11 * 3)
    assert len(client.service.handled) == 1
    first.answer(200, [], b"1")
    client.service.handled[1][1].answer(200, [], b"2")
    client.service.handled[2][1].answer(200, [], b"3")
    assert [part[:1] for part in client.took().split(b"\r\n\r\n")[1:]] == [b"1", b"2", b"3"]


def test_what_comes_while_a_request_is_worked_on_waits(client):
    first = client.asks()
    client.protocol.data_received(HTTP_11)
    client.protocol.data_received(b"\x00")
    assert len(client.service.handled) == 1
    first.answer(200, [], b"")
    client.service.handled[1][1].answer(200, [], b"")
    assert client.took().count(b"HTTP/1.1 200") == 2
    assert client.transport.eof or client.transport.closed or b" 400 " in client.transport.written


def test_who_sends_ahead_without_end_is_made_to_wait(client):
    first = client.asks()
    for _ in range(100):
        if not client.transport.paused:
            client.protocol.data_received(b"GET /a HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 5000 + b"\r\n\r\n")
    assert client.transport.paused
    assert client.protocol._held_size < 80_000
    first.answer(200, [], b"")
    assert not client.transport.paused


def test_who_does_not_take_answers_gets_no_more(client):
    client.asks().answer(200, [], b"x" * 100_000)
    client.protocol.pause_writing()
    client.protocol.data_received(HTTP_11)
    assert len(client.service.handled) == 1
    client.protocol.resume_writing()
    assert len(client.service.handled) == 2


def test_a_slow_client_is_told_of_and_waited_for(client):
    reply = client.asks()
    reply.start(200, [])
    client.protocol.pause_writing()
    drained = []
    assert reply.paused
    reply.on_drain(lambda: drained.append(1))
    client.protocol.resume_writing()
    assert drained == [1]
    assert not reply.paused


def test_a_client_that_takes_nothing_is_given_up_and_one_that_takes_little_is_not(client):
    reply = client.asks()
    reply.start(200, [])
    client.transport.full = 100_000
    client.protocol.pause_writing()
    for left in (90_000, 80_000):
        client.clock.now += 61
        client.transport.full = left
        client.protocol.sweep(client.clock.now)
        assert not client.transport.aborted
    client.clock.now += 61
    client.protocol.sweep(client.clock.now)
    assert client.transport.aborted


def test_a_client_that_does_not_take_the_end_of_an_answer_is_given_up_too(client):
    reply = client.asks()
    client.transport.full = 100_000
    client.protocol.pause_writing()
    reply.answer(200, [], b"x")
    client.clock.now += 61
    assert client.protocol.due <= client.clock.now
    client.protocol.sweep(client.clock.now)
    assert client.transport.aborted


def test_a_client_that_leaves_is_told_of_once(client):
    left = []
    reply = client.asks()
    reply.on_gone(lambda: left.append(1))
    client.protocol.connection_lost(None)
    assert left == [1]
    assert reply.gone
    reply.answer(200, [], b"x")
    reply.end()
    reply.abort()
    assert client.took() == b""


def test_who_leaves_after_the_answer_is_not_told_of(client):
    left = []
    reply = client.asks()
    reply.on_gone(lambda: left.append(1))
    reply.answer(200, [], b"x")
    client.protocol.connection_lost(None)
    assert left == []


def test_a_client_that_closes_its_side_is_taken_for_gone_while_it_is_answered(client):
    client.asks()
    client.protocol.eof_received()
    assert client.transport.aborted


def test_a_service_that_fails_answers_500(client, caplog):
    def handle(request, reply):
        raise ZeroDivisionError

    client.service.handle = handle
    client.protocol.data_received(HTTP_11)
    assert b" 500 Internal Server Error\r\n" in client.took()
    assert "ZeroDivisionError" in caplog.text


def test_a_service_that_fails_in_its_answer_ends_the_connection(client, caplog):
    def handle(request, reply):
        reply.start(200, [])
        raise ZeroDivisionError

    client.service.handle = handle
    client.protocol.data_received(HTTP_11)
    assert client.transport.closed


def test_the_body_is_held_until_the_answer_has_ended(client):
    reply = client.asks(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
    assert client.server.buffered == 5
    reply.answer(200, [], b"")
    assert client.server.buffered == 0


def test_a_word_before_the_body_comes_once_and_not_inside_another_answer(client):
    waiting = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    client.protocol.data_received(waiting)
    assert client.took() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.asks(b"hello").answer(200, [], b"")
    client.took()
    first = client.asks(HTTP_11 + waiting)
    assert client.took() == b""
    first.answer(200, [], b"")
    assert client.took().endswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_an_error_ends_the_connection_after_the_client_could_read_it(client):
    client.protocol.data_received(b"nonsense\r\n\r\n")
    assert client.took().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert client.transport.eof
    assert not client.transport.closed
    client.protocol.data_received(b"x" * 100_000)
    assert client.took() == b""
    client.clock.now += 6
    client.protocol.sweep(client.clock.now)
    assert client.transport.aborted


def test_a_head_that_does_not_come_is_answered_once(client):
    client.protocol.data_received(HTTP_11[:9])
    client.clock.now += 21
    client.protocol.sweep(client.clock.now)
    assert client.took().startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_an_unused_connection_ends_without_a_word(client):
    client.clock.now += 76
    client.protocol.sweep(client.clock.now)
    assert client.took() == b""
    assert client.transport.closed


def test_a_slow_body_is_not_ended_as_unused(client):
    client.protocol.data_received(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n" + b"x" * 100_000
    )
    client.clock.now += 100
    client.protocol.sweep(client.clock.now)
    assert not client.transport.is_closing()
    client.clock.now += 200
    client.protocol.sweep(client.clock.now)
    assert b" 408 " in client.took()


def test_a_long_answer_is_not_ended_by_the_sweep(client):
    client.asks(HTTP_11 + HTTP_11[:9])
    client.clock.now += 10_000
    client.protocol.sweep(client.clock.now)
    assert not client.transport.is_closing()
    assert client.took() == b""


def test_who_comes_when_there_are_too_many_is_told_so():
    client = Client(connections=0)
    assert client.took().startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert client.transport.closed


def test_a_refusal_keeps_the_connection_unless_it_says_otherwise():
    client = Client(lambda request: Refusal(401, ((b"www-authenticate", b"Bearer"),), b"no"))
    client.protocol.data_received(HTTP_11 * 2)
    assert client.took().count(b"HTTP/1.1 401 Unauthorized\r\n") == 2
    closing = Client(lambda request: Refusal(401, (), b"no", close=True))
    closing.protocol.data_received(HTTP_11 * 2)
    assert closing.took().count(b"HTTP/1.1 401 ") == 1


def _engine(*headers):
    return [(b"content-type", b"x"), (b"date", b"then"), (b"server", b"y"), (b"set-cookie", b"z"), *headers]


def test_an_engines_answer_passes_as_it_is_framed(client):
    reply = client.asks()
    reply.pass_head(200, _engine((b"content-length", b"5")), extra=b"x-request-id: 1\r\n")
    assert client.took() == b""
    reply.pass_data(b"hello", b"hello")
    reply.end()
    assert client.took() == (
        b"HTTP/1.1 200 OK\r\ndate: today\r\nx-request-id: 1\r\ncontent-type: x\r\ncontent-length: 5\r\n\r\nhello"
    )


def test_the_chunks_of_an_engine_pass_as_they_are(client):
    reply = client.asks()
    reply.pass_head(200, _engine((b"transfer-encoding", b"Chunked")))
    reply.pass_data(b"", b"")
    assert client.took().endswith(b"transfer-encoding: chunked\r\n\r\n")
    reply.pass_data(b"hello", b"5;a=b\r\nhello\r\n")
    reply.pass_data(b"", b"0\r\n\r\n")
    reply.end()
    assert client.took() == b"5;a=b\r\nhello\r\n0\r\n\r\n"
    assert reply.sent == 5


@pytest.mark.parametrize("framing", [(b"transfer-encoding", b"chunked"), (b"x", b"y")])
def test_http_1_0_gets_the_data_alone(client, framing):
    reply = client.asks(HTTP_10_KEPT)
    reply.pass_head(200, [framing])
    reply.pass_data(b"hello", b"5\r\nhello\r\n")
    reply.end()
    head, _, body = client.took().partition(b"\r\n\r\n")
    assert body == b"hello"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert client.transport.closed


def test_an_answer_that_ended_with_the_connection_is_put_in_chunks(client):
    reply = client.asks()
    reply.pass_head(200, [])
    reply.pass_data(b"hello", b"hello")
    reply.end()
    assert client.took().endswith(b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert not client.transport.is_closing()


def test_an_answer_whose_body_is_changed_is_framed_anew(client):
    reply = client.asks()
    reply.pass_head(200, [(b"content-length", b"9")], reframe=True)
    reply.pass_data(b"hello", b"something")
    reply.end()
    written = client.took()
    assert b"content-length" not in written
    assert written.endswith(b"5\r\nhello\r\n0\r\n\r\n")


def test_headers_for_one_hop_do_not_pass(client):
    reply = client.asks()
    named = [
        (b"connection", b"x-one, keep-alive"),
        (b"x-one", b"1"),
        (b"keep-alive", b"5"),
        (b"upgrade", b"h2c"),
        (b"x-two", b"2"),
    ]
    reply.pass_head(200, [*named, (b"content-length", b"0")])
    reply.end()
    assert client.took() == b"HTTP/1.1 200 OK\r\ndate: today\r\nx-two: 2\r\ncontent-length: 0\r\n\r\n"


def test_the_framing_cannot_be_taken_away_by_naming_it(client):
    reply = client.asks()
    reply.pass_head(200, [(b"connection", b"content-length"), (b"content-length", b"5")])
    reply.pass_data(b"hello", b"hello")
    reply.end()
    assert b"content-length: 5\r\n" in client.took()


def test_an_engines_answer_to_head_has_no_body(client):
    reply = client.asks(HEAD)
    reply.pass_head(200, [(b"content-length", b"5")])
    reply.pass_data(b"", b"")
    reply.end()
    assert client.took().endswith(b"content-length: 5\r\n\r\n")
    assert not client.transport.is_closing()


def test_a_broken_answer_of_an_engine_is_broken_for_the_client(client):
    reply = client.asks()
    reply.pass_head(200, [(b"content-length", b"5")])
    reply.pass_data(b"he", b"he")
    reply.abort()
    assert client.transport.closed
    assert client.took().endswith(b"he")


def test_while_draining_every_answer_is_the_last(client):
    client.server.draining = True
    client.asks().answer(200, [], b"")
    assert b"connection: close" in client.took()
    assert client.transport.closed


def test_a_body_plan_says_nothing_by_default():
    assert BodyPlan().limit is None
