"""Requests that are sent on are written anew."""

from __future__ import annotations

import pytest

from gpustack.dataplane.http import NOT_FOR_SERVERS, host_header, request_head, request_line
from gpustack.dataplane.http.proxies import TrustedProxies

FIRST = request_line(b"POST", b"/v1/x?a=b", host_header("127.0.0.1", 80))


def _request(side, *lines: bytes, method: bytes = b"POST"):
    fields = b"".join(line + b"\r\n" for line in lines)
    side.reader.feed(method + b" /v1/x HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
    return side.reader.ready[-1]


def test_a_request_has_our_own_host_and_length(side):
    request = _request(side, b"Content-Length: 0", b"Accept: x", b"X-Thing: y ")
    assert request_head(FIRST, request, 7, extra=b"x-request-id: 1\r\n") == (
        b"POST /v1/x?a=b HTTP/1.1\r\nhost: 127.0.0.1:80\r\naccept: x\r\nx-thing: y \r\nx-request-id: 1\r\n"
        b"content-length: 7\r\n\r\n"
    )


def test_a_method_without_a_body_has_no_length(side):
    assert b"content-length" not in request_head(FIRST, _request(side, method=b"GET"), 0)


def test_credentials_and_headers_for_one_hop_do_not_reach_an_engine(side):
    request = _request(
        side, b"Authorization: Bearer x", b"Cookie: x", b"X-API-Key: x", b"X-Request-ID: x", b"TE: trailers", b"Trailer: x",
        b"Keep-Alive: 5", b"Proxy-Connection: x", b"Proxy-Authorization: x", b"Upgrade: h2c", b"HTTP2-Settings: x",
        b"Connection: close, X-One, \tX-Two", b"X-One: 1", b"x-two: 2", b"X-Three: 3", b"Expect: 100-continue",
    )  # fmt: skip
    assert request_head(FIRST, request, 0) == FIRST + b"x-three: 3\r\ncontent-length: 0\r\n\r\n"


def test_our_own_server_gets_the_credentials(side):
    request = _request(side, b"Authorization: Bearer x", b"Cookie: y", b"Connection: keep-alive")
    found = request_head(FIRST, request, 0, without=NOT_FOR_SERVERS)
    assert found == FIRST + b"authorization: Bearer x\r\ncookie: y\r\ncontent-length: 0\r\n\r\n"


def test_ipv6_has_brackets():
    assert host_header("::1", 80) == b"[::1]:80"
    assert b"host: [::1]:80\r\n" in request_line(b"GET", b"/", host_header("::1", 80))


@pytest.mark.parametrize(
    ("method", "target", "host"),
    [
        (b"GET", b"/a b", b"a"),
        (b"GET", b"/a\r\nX: y", b"a"),
        (b"GET", b"", b"a"),
        (b"GET", b"/", b"a\r\nX: y"),
        (b"GET", b"/", b"a/b"),
        (b"G T", b"/", b"a"),
    ],
)
def test_nothing_that_would_be_more_than_one_line_is_sent(method, target, host):
    with pytest.raises(ValueError, match="no request can be made"):
        request_line(method, target, host)


def test_networks_are_told_from_what_is_none():
    with pytest.raises(ValueError, match="not"):
        TrustedProxies(["here"])


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3", True), ("11.1.2.3", False), ("::ffff:10.1.2.3", True), ("fd00::1", True), ("fe80::1%eth0", False),
        ("", False), ("nobody", False),
    ],
)  # fmt: skip
def test_a_proxy_is_trusted_by_its_network(peer, trusted):
    assert TrustedProxies(["10.0.0.0/8", "fd00::/8"]).trusts(peer) is trusted


@pytest.mark.parametrize(
    ("said", "client"),
    [
        (b"", "10.0.0.1"),
        (b"203.0.113.9", "203.0.113.9"),
        (b"203.0.113.9, 10.0.0.2", "203.0.113.9"),
        (b"6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"203.0.113.9, unknown", "10.0.0.1"),
        (b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
    ],
)
def test_the_client_is_the_last_one_that_is_not_trusted(said, client):
    proxies = TrustedProxies(["10.0.0.0/8"])
    assert proxies.client("10.0.0.1", [(b"x-forwarded-for", said)]) == client
