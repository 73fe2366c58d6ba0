"""What a client sends: requests are those that a strict reader finds, in whatever pieces they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpustack.dataplane.http import BodyPlan, HttpServer, Limits, Refusal, Reply, Request, heads
from gpustack.dataplane.http.reader import RequestReader
from support import strict_http
from support.fuzzing.cuts import ways
from support.http_bytes import ACCEPTED, HIDDEN, REFUSED

WORDS = (
    *(b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b"/v1/x", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"http://a"),
    *(b"Host: a\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: ", b"chunked"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: ", b"Expect: 100-continue\r\n"),
    *(b"X-Forwarded-For: ", b"Upgrade: h2c\r\n", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"\n", b"\r"),
    *(b"\t", b";a=b", b",", b"0x", b"ffffffffffffffff", b"1;", b" :", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
)  # fmt: skip

#: So small that inputs reach them.
_TIGHT = Limits(
    head_bytes=200, target_bytes=40, headers=4, body_bytes=30, all_bodies_bytes=50, chunk_overhead_bytes=60,
    swallowed_bytes=20, pipelined=3,
)  # fmt: skip


def seeds() -> Iterable[bytes]:
    """Return the bytes that other tests know."""
    for data, _ in ACCEPTED.values():
        yield data
    for data, _ in REFUSED.values():
        yield data + HIDDEN
    yield b"".join(data for data, _ in list(ACCEPTED.values())[5:14])


class _Service:
    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses

    def begin(self, request: Request) -> Refusal | BodyPlan:
        if self.refuses and request.path.startswith(b"/v"):
            return Refusal(401, (), b"")
        return BodyPlan()

    def handle(self, request: Request, reply: Reply) -> None:
        raise AssertionError


class _Read:
    """What one reader made of the pieces."""

    def __init__(
        self, pieces: Sequence[bytes], limits: Limits | None = None, *, refuses: bool = False
    ) -> None:
        self.server = HttpServer(_Service(refuses), limits)
        self.server.clock = lambda: 0.0
        self.reader = reader = RequestReader(self.server, "192.0.2.1", tls=False)
        for piece in pieces:
            reader.feed(piece)
        self.requests = [each for each in reader.ready if each.refusal is None]
        self.refused = [each for each in reader.ready if each.refusal is not None]

    @property
    def outcome(self) -> object:
        """All that anybody sees of it."""
        statuses = [each.refusal and each.refusal.status for each in self.reader.ready]
        # A client that goes away in the midst of a request leaves nothing to compare.
        return [_seen(each) for each in self.requests], statuses, self.reader.deaf, self.reader.begun


def _seen(request: Request) -> object:
    return (
        *(
            request.method,
            request.path,
            request.query,
            request.version,
            request.host,
            request.headers,
            request.body,
        ),
        *(
            request.keep_alive,
            request.length,
            request.chunked,
            request.size,
            request.head_only,
            request.expects,
        ),
    )


def run(data: bytes) -> None:
    """Read ``data`` in several ways."""
    read = _Read([data])
    _against_strict(data, read)
    for pieces in ways(data):
        assert _Read(pieces).outcome == read.outcome, "another cut is read as something else"
    _ends_clean(read)
    for refuses in (False, True):
        for pieces in ([data], *ways(data)):
            _within_bounds(_Read(pieces, _TIGHT, refuses=refuses))


def _against_strict(data: bytes, read: _Read) -> None:
    found, end, bad = strict_http.requests_in(data)
    assert len(read.requests) <= len(found), "a strict reader finds fewer requests"
    for request, strict in zip(read.requests, found, strict=False):
        assert (request.method, request.target, request.body) == (*strict.first, strict.body)
        told = [each for each in strict.headers if each[0] not in heads.FORWARDING]
        assert [(name, value.strip(b" \t")) for name, value in request.headers] == told
        assert request.version.encode() == strict.version
        assert request.keep_alive <= strict.keep_alive, "goes on where the client has said that it ends"
    if read.reader.deaf:
        return
    assert not read.refused
    assert len(read.requests) == len(found), "a whole request has not been taken"
    assert read.reader.begun <= (end < len(data) or bad)


def _ends_clean(read: _Read) -> None:
    assert read.server.buffered == sum(each.size for each in read.reader.ready) + _unfinished(read.reader)
    read.reader.close()
    assert read.server.buffered == 0


def _unfinished(reader: RequestReader) -> int:
    return reader._request.size if reader._request is not None else 0


def _within_bounds(read: _Read) -> None:
    reader = read.reader
    assert len(read.refused) <= len(reader.ready)
    assert len(reader.ready) <= _TIGHT.pipelined + 1
    for request in read.requests:
        assert len(request.body) == request.size <= _TIGHT.body_bytes
        assert len(request.headers) <= _TIGHT.headers
        assert len(request.target) <= _TIGHT.target_bytes
    assert read.server.buffered <= _TIGHT.all_bodies_bytes
    last = [each for each in read.refused if not each.keep_alive]
    assert not last or reader.ready[-1] is last[-1]
    _ends_clean(read)
