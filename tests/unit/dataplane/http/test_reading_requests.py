"""What a client sends becomes requests, whatever pieces it comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.http import BodyPlan, HttpServer, Refusal, Request
from gpustack.dataplane.http.reader import RequestReader
from support.http_bytes import ACCEPTED, HIDDEN, REFUSED

GET = b"GET /v1/models?a=b HTTP/1.1\r\nHost: here\r\n\r\n"


def _post(length, body=b""):
    return b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length + body


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_once_and_nothing_behind_it_is_read(side, name):
    data, status = REFUSED[name]
    side.reader.feed(data + HIDDEN)
    side.reader.feed(HIDDEN)
    assert side.statuses == [status]
    assert side.reader.deaf
    assert side.reader.ready[0].keep_alive is False
    assert side.server.buffered == 0
    assert all(request.path != b"/hidden" for request in side.service.begun)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_byte_by_byte_too(side, name):
    data, status = REFUSED[name]
    for at in range(len(data)):
        side.reader.feed(data[at : at + 1])
    side.reader.feed(HIDDEN)
    assert side.statuses == [status]


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_what_is_valid_is_read_in_pieces_of_any_size(side, name, size):
    data, bodies = ACCEPTED[name]
    for at in range(0, len(data), size):
        side.reader.feed(data[at : at + size])
    assert tuple(request.body for request in side.reader.ready) == bodies
    assert side.statuses == [None] * len(bodies)
    assert not side.reader.deaf
    assert side.server.buffered == sum(map(len, bodies))
    for request in side.reader.ready:
        side.reader.give_back(request)
    assert side.server.buffered == 0


@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([each[0] for each in REFUSED.values()] + [GET]), max_size=6
    )
)
def test_no_bytes_make_a_reader_fail_or_keep_what_it_has_refused(pieces):
    class Service:
        def begin(self, request):
            return BodyPlan()

        def handle(self, request, reply):
            raise AssertionError

    server = HttpServer(Service())
    reader = RequestReader(server, "", tls=False)
    for piece in pieces:
        reader.feed(piece)
    refused = [request for request in reader.ready if request.refusal]
    assert len(refused) <= 1
    assert not refused or reader.ready[-1] is refused[0]
    reader.close()
    assert server.buffered == 0


def test_a_request_is_taken_apart(side):
    side.reader.feed(b"GET /v1/models?a=b%20?c HTTP/1.1\r\nHOST:  Here:80 \r\nX-Thing: A, b \r\n\r\n")
    (request,) = side.reader.ready
    assert (request.method, request.path, request.query) == (b"GET", b"/v1/models", b"a=b%20?c")
    assert (request.host, request.version, request.keep_alive) == (b"Here:80", "1.1", True)
    assert request.header(b"x-thing") == b"A, b"
    assert request.header(b"y") is None
    assert request.peer == "192.0.2.1"


def test_a_whole_address_stands_in_for_host(side):
    side.reader.feed(b"GET http://there:81?q HTTP/1.1\r\nHost: here\r\n\r\n")
    (request,) = side.reader.ready
    assert (request.host, request.path, request.query) == (b"there:81", b"/", b"q")


def test_the_same_target_again_is_the_same_and_another_is_not(side):
    for target in (b"/a?x", b"/a?x", b"/a", b"http://b/a", b"/a?x"):
        side.reader.feed(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    found = [(each.path, each.query) for each in side.reader.ready]
    assert found == [(b"/a", b"x"), (b"/a", b"x"), (b"/a", b""), (b"/a", b""), (b"/a", b"x")]


def test_what_was_valid_before_does_not_make_something_else_valid(side):
    side.reader.feed(GET)
    side.reader.feed(b"GET /v1/models?a=b#c HTTP/1.1\r\nHost: here\r\n\r\n")
    assert side.statuses == [None, 400]


def test_trailers_are_no_headers(side):
    side.reader.feed(ACCEPTED["trailers"][0])
    (request,) = side.reader.ready
    assert [name for name, _ in request.headers] == [b"host", b"transfer-encoding"]


def test_pipelined_requests_do_not_overwrite_each_other(side):
    first = b"POST /a HTTP/1.1\r\nHost: a\r\nAuthorization: one\r\nContent-Length: 1\r\n\r\n1"
    second = b"POST /b HTTP/1.1\r\nHost: a\r\nAuthorization: two\r\nContent-Length: 1\r\nConnection: close\r\n\r\n2"
    side.reader.feed(first + second)
    found = [
        (each.path, each.header(b"authorization"), each.body, each.keep_alive) for each in side.reader.ready
    ]
    assert found == [(b"/a", b"one", b"1", True), (b"/b", b"two", b"2", False)]


def test_what_follows_the_last_request_is_ignored(side):
    side.reader.feed(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + HIDDEN)
    assert side.statuses == [None]
    assert side.reader.deaf


def test_the_seventeenth_request_of_one_read_is_not_answered(side):
    side.reader.feed(GET * 40)
    assert len(side.reader.ready) == side.server.limits.pipelined
    assert [each.keep_alive for each in side.reader.ready] == [True] * 15 + [False]
    assert side.reader.deaf


@pytest.mark.parametrize("whole", [True, False])
def test_too_many_bytes_of_headers_are_refused_also_in_one_read(make_side, whole):
    side = make_side(head_bytes=1000)
    data = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 1000 + b"\r\n\r\n"
    side.reader.feed(data if whole else data[:-2])
    assert side.statuses == [431]


def test_an_endless_field_is_refused_while_it_comes(side):
    side.reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    fed = 0
    while not side.reader.deaf:
        side.reader.feed(b"y" * 1000)
        fed += 1000
    assert side.statuses == [431]
    assert fed < 70_000


@pytest.mark.parametrize("end", [b"\r\n", b""])
def test_too_many_fields_are_refused(side, end):
    side.reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 200 + end)
    assert side.statuses == [431]


def test_fields_without_end_in_one_read_are_not_all_looked_at(side):
    side.reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 60_000)
    assert side.statuses == [431]


def test_a_long_target_is_refused_without_its_end(side):
    side.reader.feed(b"GET /" + b"x" * 9000)
    assert side.statuses == [414]


def test_pipelined_requests_are_each_within_the_limits_of_a_head(make_side):
    side = make_side(head_bytes=1000)
    one = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 700 + b"\r\n\r\n"
    side.reader.feed(one * 3 + one[:600])
    side.reader.feed(one[600:])
    assert side.statuses == [None] * 4


def test_an_announced_body_that_is_too_large_is_refused_at_once(make_side):
    side = make_side(body_bytes=10)
    side.reader.feed(_post(11))
    assert side.statuses == [413]


def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large(make_side):
    side = make_side(body_bytes=10)
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    assert side.statuses == []
    side.reader.feed(b"6\r\nhello!")
    assert side.statuses == [413]
    assert side.server.buffered == 0


def test_the_service_says_how_large_a_body_may_be(make_side):
    side = make_side(lambda request: BodyPlan(limit=3))
    side.reader.feed(_post(4))
    assert side.statuses == [413]


def test_all_bodies_together_have_a_limit(make_side):
    side = make_side(all_bodies_bytes=100)
    side.reader.feed(_post(80, b"x" * 80))
    other = RequestReader(side.server, "", tls=False)
    other.feed(_post(30))
    (refused,) = other.ready
    assert refused.refusal is not None
    assert refused.refusal.status == 503
    assert (b"retry-after", b"5") in refused.refusal.headers
    assert side.server.buffered == 80
    side.reader.give_back(side.reader.ready[0])
    again = RequestReader(side.server, "", tls=False)
    again.feed(_post(30, b"x" * 30))
    assert again.ready[0].refusal is None


def test_bodies_that_grow_together_are_refused_when_it_is_too_much(make_side):
    side = make_side(all_bodies_bytes=100)
    other = RequestReader(side.server, "", tls=False)
    other.feed(_post(90, b"x" * 60))
    side.reader.feed(_post(90, b"x" * 30))
    side.reader.feed(b"x" * 30)
    assert side.statuses == [503]
    assert side.server.buffered == 60
    other.close()
    assert side.server.buffered == 0


def test_bytes_in_chunks_of_one_do_not_take_fifty_times_their_size(side):
    side.reader.feed(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 5000
        + b"0\r\n\r\n"
    )
    (request,) = side.reader.ready
    assert request.body == b"x" * 5000


@pytest.mark.parametrize(
    "what", [b"1;" + b"a" * 50_000, b"0\r\nX: " + b"a" * 50_000, b"1\r\nx\r\n0\r\n" + b"X: a\r\n" * 20_000]
)
def test_extensions_and_trailers_without_end_are_refused(side, what):
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, 2 * len(what), 10_000):
        side.reader.feed((what + b"a" * len(what))[at : at + 10_000])
    assert side.statuses == [400]


def test_many_extensions_of_some_length_are_refused(side):
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        side.reader.feed(b"1;" + b"a" * 1000 + b"\r\nx\r\n")
    assert side.statuses == [400]


def test_small_chunks_are_fine(side):
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(3000):
        side.reader.feed(b"00000001\r\nx\r\n")
    side.reader.feed(b"0\r\n\r\n")
    assert side.statuses == [None]


def _no(status=401, *, close=False):
    return lambda request: Refusal(status, (), b"no", close)


def test_a_refused_request_with_a_small_body_keeps_the_connection(make_side):
    side = make_side(_no())
    side.reader.feed(_post(5, b"he"))
    assert side.statuses == []
    side.reader.feed(b"llo" + GET)
    assert side.statuses == [401, 401]
    assert side.server.buffered == 0
    assert not side.reader.deaf
    assert side.reader.ready[0].body == b""


def test_a_refused_request_with_a_large_body_ends_the_connection(make_side):
    side = make_side(_no())
    side.reader.feed(_post(2 << 20))
    assert side.statuses == [401]
    assert side.reader.deaf


def test_a_refused_request_in_chunks_is_read_up_to_a_limit(make_side):
    side = make_side(_no(), swallowed_bytes=1000)
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert side.statuses == []
    side.reader.feed(b"800\r\n" + b"x" * 2048)
    assert side.statuses == [401]
    assert side.reader.deaf


def test_who_waits_for_a_word_before_the_body_is_refused_at_once(make_side):
    side = make_side(_no())
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert side.statuses == [401]
    assert side.reader.deaf


def test_who_waits_for_a_word_before_the_body_is_owed_one(side):
    side.reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n")
    assert side.reader.owes_continue
    side.reader.feed(b"hello")
    assert not side.reader.owes_continue
    assert side.statuses == [None]


def test_http_1_0_knows_no_expectations(side):
    side.reader.feed(b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert not side.reader.owes_continue


def test_a_service_that_fails_to_judge_is_a_500(make_side, caplog):
    def judge(request: Request) -> BodyPlan:
        raise ZeroDivisionError

    side = make_side(judge)
    side.reader.feed(GET)
    assert side.statuses == [500]
    assert "could not be judged" in caplog.text


def test_a_head_has_its_time_and_a_body_more_the_longer_it_is(side):
    assert side.reader.due > 10**9
    side.reader.feed(GET[:10])
    assert side.reader.due == side.clock.now + 20
    side.reader.feed(GET[10:])
    assert side.reader.due > 10**9
    begun = side.clock.now
    side.reader.feed(_post(4 << 20))
    assert side.reader.due == begun + 30
    # Each piece has its time, as long as all of them come fast enough.
    side.clock.now += 29
    side.reader.feed(b"x" * 65536)
    assert side.reader.due == begun + 54
    side.clock.now += 20
    side.reader.feed(b"x" * (1 << 20))
    assert side.reader.due == begun + 49 + 30
    side.clock.now += 29
    side.reader.feed(b"x" * (1 << 20))
    assert side.reader.due == begun + 78 + 30
    side.clock.now += 29
    side.reader.feed(b"x")
    # 50 s for any body, 64 for the first megabyte, and 17 for the next.
    assert 131 <= side.reader.due - begun < 132
    side.reader.time_out()
    assert side.statuses == [None, 408]


def test_who_had_to_wait_for_us_gets_the_time_anew(side):
    side.reader.feed(GET[:10])
    side.clock.now += 1000
    side.reader.restart()
    assert side.reader.due == side.clock.now + 20


FORWARDED = b"".join(
    b"%b: 203.0.113.9\r\n" % name
    for name in (
        b"Forwarded",
        b"X-Forwarded-For",
        b"X-Forwarded-Host",
        b"X-Forwarded-Proto",
        b"X-Real-IP",
        b"X_Forwarded_For",
    )
)


def test_what_strangers_say_about_where_a_request_comes_from_is_dropped(side):
    side.reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + FORWARDED + b"\r\n")
    (request,) = side.reader.ready
    assert request.headers == [(b"host", b"a")]
    assert request.peer == "192.0.2.1"


def test_a_trusted_proxy_is_believed_and_nobody_before_it(make_side):
    side = make_side(peer="10.0.0.9", trusted_proxies=("10.0.0.0/8",))
    side.reader.feed(
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.9:4444\r\n"
        b"X-Forwarded-For: 10.0.0.3\r\nX-Forwarded-Proto: https\r\n\r\n"
    )
    (request,) = side.reader.ready
    assert request.peer == "203.0.113.9"
    assert request.tls


def test_a_stranger_is_not_taken_for_a_trusted_proxy(make_side):
    side = make_side(trusted_proxies=("10.0.0.0/8", "fd00::/8"))
    side.reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n")
    assert side.reader.ready[0].peer == "192.0.2.1"
    assert side.reader.ready[0].header(b"x-forwarded-for") is None
