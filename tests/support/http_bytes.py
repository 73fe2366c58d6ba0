"""Bytes that one reader of HTTP may take for something else than another does, and what is to become of them."""

from __future__ import annotations

from collections.abc import Mapping

_POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
#: What follows a request that was taken for shorter than another reader takes it: it must never be answered.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return _POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _get(*lines: bytes, first: bytes = b"GET /v1/x HTTP/1.1") -> bytes:
    return b"".join(line + b"\r\n" for line in (first, *lines)) + b"\r\n"


#: Name: (bytes, status). Each gets exactly one answer and ends the connection, whatever follows.
REFUSED: Mapping[str, tuple[bytes, int]] = {
    # Two lengths, or one that is none
    "CL.TE": (_post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nG"), 400),
    "TE.CL": (_post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"5c\r\nG"), 400),
    "CL twice, the same": (_post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"), 400),
    "CL twice, different": (_post(b"Content-Length: 0", b"Content-Length: 44"), 400),
    "CL as a list": (_post(b"Content-Length: 1, 1", body=b"x"), 400),
    "CL with a plus": (_post(b"Content-Length: +1", body=b"x"), 400),
    "CL with a minus": (_post(b"Content-Length: -1", body=b"x"), 400),
    "CL in hexadecimal": (_post(b"Content-Length: 0x1", body=b"x"), 400),
    "CL with an underscore": (_post(b"Content-Length: 1_0", body=b"x" * 10), 400),
    "CL with a fraction": (_post(b"Content-Length: 1.0", body=b"x"), 400),
    "CL with a space inside": (_post(b"Content-Length: 1 0", body=b"x" * 10), 400),
    "CL empty": (_post(b"Content-Length:"), 400),
    "CL too large for 64 bits": (_post(b"Content-Length: 18446744073709551617", body=b"x"), 400),
    "CL in other digits": (_post("Content-Length: １".encode(), body=b"x"), 400),
    # Codings
    "gzip, chunked": (_post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "chunked twice in one": (_post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "chunked twice in two": (_post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunked then identity": (_post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 400),
    "identity": (_post(b"Transfer-Encoding: identity"), 501),
    "unknown coding": (_post(b"Transfer-Encoding: cow", body=b"0\r\n\r\n"), 501),
    "chunked in quotes": (_post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    "chunked with a parameter": (_post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n"), 501),
    "chunked after a vertical tab": (_post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "xchunked": (_post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    "TE empty": (_post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), 400),
    "TE after a space": (_post(b" Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "TE on HTTP/1.0": (_get(b"Host: a", b"Transfer-Encoding: chunked", first=b"POST /v1/x HTTP/1.0") + b"0\r\n\r\n", 400),
    # Fields and lines
    "space before the colon": (_post(b"Content-Length : 1", body=b"x"), 400),
    "tab before the colon": (_post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"), 400),
    "no colon": (_get(b"Host: a", b"nonsense"), 400),
    "no name": (_get(b"Host: a", b": nonsense"), 400),
    "folded line": (_get(b"Host: a", b"X: a", b" b"), 400),
    "folded TE": (_post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"), 400),
    "bare LF between fields": (b"GET /v1/x HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "bare LF after the request line": (b"GET /v1/x HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LFs at the end": (b"GET /v1/x HTTP/1.1\r\nHost: a\n\n", 400),
    "bare CR in a value": (_get(b"Host: a", b"X: a\rTransfer-Encoding: chunked"), 400),
    "CR CR LF": (b"GET /v1/x HTTP/1.1\r\r\nHost: a\r\n\r\n", 400),
    "NUL in a value": (_get(b"Host: a", b"X: a\x00b"), 400),
    "NUL in a name": (_get(b"Host: a", b"X\x00Y: b"), 400),
    "control character in a value": (_get(b"Host: a", b"X: a\x01b"), 400),
    "other letters in a name": (_get(b"Host: a", "Ｘ: b".encode()), 400),
    "parenthesis in a name": (_get(b"Host: a", b"X(Y): b"), 400),
    # Chunks
    "chunk size with a sign": (_CHUNKED + b"+1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size with 0x": (_CHUNKED + b"0x1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size with an underscore": (_CHUNKED + b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", 400),
    "chunk size after a space": (_CHUNKED + b" 1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size before a space": (_CHUNKED + b"1 \r\nx\r\n0\r\n\r\n", 400),
    "chunk size empty": (_CHUNKED + b"\r\nx\r\n0\r\n\r\n", 400),
    "chunk size no number": (_CHUNKED + b"x\r\nx\r\n0\r\n\r\n", 400),
    "chunk size too large for 64 bits": (_CHUNKED + b"10000000000000001\r\nx\r\n0\r\n\r\n", 400),
    "chunk size ends with LF": (_CHUNKED + b"1\nx\r\n0\r\n\r\n", 400),
    "chunk extension ends with LF": (_CHUNKED + b"1;a\nx\r\n0\r\n\r\n", 400),
    "chunk extension with CR": (_CHUNKED + b"1;a\rb\r\nx\r\n0\r\n\r\n", 400),
    "chunk longer than it says": (_CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", 400),
    "chunk ends with LF": (_CHUNKED + b"1\r\nx\n0\r\n\r\n", 400),
    "last chunk ends with LF": (_CHUNKED + b"0\n\n", 400),
    "trailer with a bare LF": (_CHUNKED + b"0\r\nX: a\nY: b\r\n\r\n", 400),
    "trailer with a space before the colon": (_CHUNKED + b"0\r\nX : a\r\n\r\n", 400),
    "Content-Length among the trailers": (_CHUNKED + b"0\r\nContent-Length: 44\r\n\r\n", 400),
    "Transfer-Encoding among the trailers": (_CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    # Versions
    "HTTP/0.9": (b"GET /v1/x\r\n\r\n", 505),
    "HTTP/0.9 by name": (_get(b"Host: a", first=b"GET /v1/x HTTP/0.9"), 505),
    "HTTP/2.0": (_get(b"Host: a", first=b"GET /v1/x HTTP/2.0"), 505),
    "HTTP/1.2": (_get(b"Host: a", first=b"GET /v1/x HTTP/1.2"), 400),
    "HTTP/3.0": (_get(b"Host: a", first=b"GET /v1/x HTTP/3.0"), 400),
    "HTTP/1.10": (_get(b"Host: a", first=b"GET /v1/x HTTP/1.10"), 400),
    "http/1.1": (_get(b"Host: a", first=b"GET /v1/x http/1.1"), 400),
    "HTTP/1,1": (_get(b"Host: a", first=b"GET /v1/x HTTP/1,1"), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    # Request lines
    "space in the path": (_get(b"Host: a", first=b"GET /v1/x y HTTP/1.1"), 400),
    "tab in the path": (_get(b"Host: a", first=b"GET /v1/\tx HTTP/1.1"), 400),
    "NUL in the path": (_get(b"Host: a", first=b"GET /v1/\x00x HTTP/1.1"), 400),
    "other letters in the path": (_get(b"Host: a", first="GET /v1/é HTTP/1.1".encode()), 400),
    "fragment": (_get(b"Host: a", first=b"GET /v1/x#y HTTP/1.1"), 400),
    "path without a slash": (_get(b"Host: a", first=b"GET v1/x HTTP/1.1"), 400),
    "star for GET": (_get(b"Host: a", first=b"GET * HTTP/1.1"), 400),
    "another scheme": (_get(b"Host: a", first=b"GET ftp://a/v1/x HTTP/1.1"), 400),
    "somebody in the authority": (_get(b"Host: a", first=b"GET http://b@a/v1/x HTTP/1.1"), 400),
    "no authority": (_get(b"Host: a", first=b"GET http:///v1/x HTTP/1.1"), 400),
    "unknown method": (_get(b"Host: a", first=b"COOK /v1/x HTTP/1.1"), 400),
    "small method": (_get(b"Host: a", first=b"get /v1/x HTTP/1.1"), 400),
    "space before the method": (b" " + _get(b"Host: a"), 400),
    # Host
    "no Host": (_get(), 400),
    "two Hosts": (_get(b"Host: a", b"Host: a"), 400),
    "two Hosts, different": (_get(b"Host: a", b"host: b"), 400),
    "two Hosts on HTTP/1.0": (_get(b"Host: a", b"Host: b", first=b"GET /v1/x HTTP/1.0"), 400),
    "empty Host": (_get(b"Host:"), 400),
    "Host with a path": (_get(b"Host: a/b"), 400),
    "Host as a list": (_get(b"Host: a, b"), 400),
    "Host with somebody": (_get(b"Host: b@a"), 400),
    "Host with a space": (_get(b"Host: a b"), 400),
    "Host with a port that is none": (_get(b"Host: a:b"), 400),
    # Other protocols
    "Upgrade": (_get(b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket"), 501),
    "Upgrade with a body": (
        _post(b"Connection: keep-alive, Upgrade", b"Upgrade: h2c", b"Content-Length: 33", body=HIDDEN), 501,
    ),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    "CONNECT with a body": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 33\r\n\r\n" + HIDDEN, 501),
    # Expectations
    "another expectation": (_post(b"Expect: 200-ok", b"Content-Length: 1", body=b"x"), 417),
    # Nonsense
    "nonsense": (b"\x00\x01\x02\x03\r\n\r\n", 400),
    "a word": (b"hello\r\n\r\n", 400),
    "an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
}  # fmt: skip

#: Name: (bytes, bodies of the requests that they hold).
ACCEPTED: Mapping[str, tuple[bytes, tuple[bytes, ...]]] = {
    "plain": (_get(b"Host: a"), (b"",)),
    "HTTP/1.0 without Host": (_get(first=b"GET /v1/x HTTP/1.0"), (b"",)),
    "line ends before it": (b"\r\n\r\n" + _get(b"Host: a"), (b"",)),
    "whole address": (_get(b"Host: a", first=b"GET http://b:80/v1/x HTTP/1.1"), (b"",)),
    "IPv6": (_get(b"Host: [::1]:8080"), (b"",)),
    "star": (_get(b"Host: a", first=b"OPTIONS * HTTP/1.1"), (b"",)),
    "length": (_post(b"Content-Length: 5", body=b"hello"), (b"hello",)),
    "length with zeros before it": (_post(b"Content-Length: 005", body=b"hello"), (b"hello",)),
    "length with spaces around it": (_post(b"Content-Length:  5  ", body=b"hello"), (b"hello",)),
    "length 0": (_post(b"Content-Length: 0"), (b"",)),
    "no length": (_post(), (b"",)),
    "GET with a body": (_get(b"Host: a", b"Content-Length: 5") + b"hello", (b"hello",)),
    "chunks": (_CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", (b"hello!",)),
    "chunks, named in capitals": (_post(b"TRANSFER-ENCODING: Chunked ", body=b"5\r\nhello\r\n0\r\n\r\n"), (b"hello",)),
    "chunks with extensions": (_CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', (b"hello",)),
    "chunks with zeros before the size": (_CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", (b"hello",)),
    "trailers": (_CHUNKED + b"5\r\nhello\r\n0\r\nX: a\r\nHost: b\r\n\r\n", (b"hello",)),
    "empty chunks": (_CHUNKED + b"0\r\n\r\n", (b"",)),
    "empty values": (_get(b"Host: a", b"X:", b"Y: "), (b"",)),
    "obsolete letters in a value": (_get(b"Host: a", b"X: \xe9"), (b"",)),
    "Upgrade that is not asked for": (_get(b"Host: a", b"Upgrade: h2c"), (b"",)),
    # The parser takes these for HTTP/1.0 and does not tell; sent on, they are plain HTTP/1.1.
    "RTSP": (_get(b"Host: a", first=b"GET /v1/x RTSP/1.0"), (b"",)),
    "two": (_post(b"Content-Length: 5", body=b"hello") + _get(b"Host: a"), (b"hello", b"")),
    "three": (_CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + _get(b"Host: a") + _post(b"Content-Length: 1", body=b"y"), (b"x", b"", b"y")),
}  # fmt: skip

_OK = b"HTTP/1.1 200 OK\r\n"
_OK_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"

#: Answers of an engine that are none, or more than one: none of it may be taken for an answer that is whole.
BAD_ANSWERS: Mapping[str, bytes] = {
    "nonsense": b"\x00\x01\x02\r\n\r\n",
    "text": b"hello there\r\n\r\n",
    "request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "line ends before it": b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ICY": b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "interim with a bare LF": b"HTTP/1.1 103 Hi\r\nX: a\nY: b\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
    "interim with a folded line": b"HTTP/1.1 103 Hi\r\nX: a\r\n b\r\n\r\n"
    + _OK
    + b"Content-Length: 0\r\n\r\n",
    "interim without a colon": b"HTTP/1.1 102 Hi\r\nnonsense\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
    "CL and TE": _OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": _OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "CL twice": _OK + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "CL as a list": _OK + b"Content-Length: 0, 0\r\n\r\n",
    "CL negative": _OK + b"Content-Length: -1\r\n\r\n",
    "CL too large": _OK + b"Content-Length: 18446744073709551617\r\n\r\n",
    "gzip": _OK + b"Transfer-Encoding: gzip\r\n\r\nx",
    "gzip, chunked": _OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked on HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare LF in the fields": _OK + b"X: a\nY: b\r\nContent-Length: 0\r\n\r\n",
    "bare CR": _OK + b"X: a\rY: b\r\nContent-Length: 0\r\n\r\n",
    "NUL": _OK + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "folded line": _OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": _OK + b"Content-Length : 0\r\n\r\n",
    "no colon": _OK + b"nonsense\r\nContent-Length: 0\r\n\r\n",
    "bad chunk size": _OK_CHUNKED + b"x\r\n\r\n",
    "chunk longer than it says": _OK_CHUNKED + b"1\r\nxy\r\n0\r\n\r\n",
    "more than its length": _OK + b"Content-Length: 2\r\n\r\nabc",
    "a line end more": _OK + b"Content-Length: 2\r\n\r\nab\r\n",
    "a line end after the chunks": _OK_CHUNKED + b"0\r\n\r\n\r\n",
    "half a line end after the chunks": _OK_CHUNKED + b"0\r\n\r\n\r",
    "two answers": (_OK + b"Content-Length: 2\r\n\r\nab") * 2,
    "two answers in chunks": (_OK_CHUNKED + b"1\r\nx\r\n0\r\n\r\n") * 2,
    "two answers, closing": (_OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nab") * 2,
    "204 with a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nab",
    "304 with a body": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nab",
}

#: Name: (bytes, status, body, whether the connection can be used again).
GOOD_ANSWERS: Mapping[str, tuple[bytes, int, bytes, bool]] = {
    "length": (_OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    "chunks": (_OK_CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", 200, b"hello!", True),
    "chunks with line ends inside": (_OK_CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", 200, b"\r\n\r\n", True),
    "trailers": (_OK_CHUNKED + b"1\r\nx\r\n0\r\nX: a\r\n\r\n", 200, b"x", True),
    "extensions": (_OK_CHUNKED + b"1;a=b\r\nx\r\n0;c\r\n\r\n", 200, b"x", True),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 2\r\n\r\nab", 200, b"ab", True),
    "two interims": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + _OK + b"Content-Length: 0\r\n\r\n",
        200, b"", True,
    ),
    "closing": (_OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", 200, b"ab", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "599": (b"HTTP/1.1 599 Hm\r\nContent-Length: 0\r\n\r\n", 599, b"", True),
    "stream": (
        _OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200, b"x", False,
    ),
    "Upgrade offered": (_OK + b"Upgrade: h2c\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
}  # fmt: skip
