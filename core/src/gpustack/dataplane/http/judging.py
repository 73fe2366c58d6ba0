"""Which heads are refused, however valid their bytes are: what another reader could take for something else."""

from __future__ import annotations

from typing import NamedTuple

from gpustack.dataplane.http import heads
from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.request import Request


class Fault(NamedTuple):
    """Why a request is refused. It may have been meant to end elsewhere, so that the connection ends with it."""

    status: int
    message: str
    code: str


_WATCHED = (
    frozenset((b"host", b"transfer-encoding", b"content-length", b"connection", b"expect")) | heads.FORWARDING
)

_RARE = frozenset((b"transfer-encoding", b"expect")) | heads.FORWARDING
_VERSION = Fault(505, "only HTTP/1.1 and HTTP/1.0 are spoken here", "http_version_not_supported")
_HOST = Fault(400, "the request needs exactly one valid Host header", "bad_request")
_CODING = Fault(501, "the only transfer coding that is understood is chunked", "not_supported")
_OLD_CHUNKS = Fault(400, "HTTP/1.0 has no Transfer-Encoding", "bad_request")
_TARGET = Fault(400, "the request line names no valid path", "bad_request")
_EXPECT = Fault(417, "the only expectation that can be met is 100-continue", "expectation_failed")


class Known:
    """Host and target that were valid last time: mostly they are the same again."""

    __slots__ = ("host", "path", "query", "target")

    def __init__(self) -> None:
        self.host: bytes | None = None
        self.target: bytes | None = None
        self.path = self.query = b""


def judge(request: Request, known: Known) -> tuple[Fault | None, bool]:
    """Fill in what follows from the head of ``request``.

    Return what is wrong with it, and whether it says where it comes from.
    """
    version = request.version
    if version not in {"1.1", "1.0"}:
        return _VERSION, False
    fields = dict(request.headers)
    if len(fields) == len(request.headers) and _RARE.isdisjoint(fields):
        request.fields = fields
        return _plain(request, known, fields), False
    hosts = 0
    forwarded = False
    fault = None
    for name, value in request.headers:
        if name not in _WATCHED:
            continue
        if name == b"host":
            hosts += 1
            request.host = value.rstrip(b" \t")
        elif name == b"content-length":
            request.length = int(value)
        elif name == b"transfer-encoding":
            request.chunked = True
            if value.rstrip(b" \t").lower() != b"chunked":
                fault = _CODING
            elif version == "1.0":
                fault = _OLD_CHUNKS
        elif name == b"connection":
            if value not in heads.PLAIN_CONNECTION:
                request.names_hops = True
        elif name == b"expect":
            if version == "1.1":
                request.expects = True
                if value.rstrip(b" \t").lower() != b"100-continue":
                    fault = _EXPECT
        else:
            forwarded = True
    if hosts != 1 and (hosts or version == "1.1"):
        return _HOST, forwarded
    if hosts and request.host != known.host:
        if not heads.HOST.fullmatch(request.host):
            return _HOST, forwarded
        known.host = request.host
    if request.target == known.target:
        request.path, request.query = known.path, known.query
        return fault, forwarded
    return fault or _split(request, known), forwarded


def _plain(request: Request, known: Known, fields: dict[bytes, bytes]) -> Fault | None:
    """Do the same for a head that has nothing twice and nothing rare: nearly all are so."""
    host = fields.get(b"host")
    if host is None:
        if request.version == "1.1":
            return _HOST
    elif host != known.host:
        host = host.rstrip(b" \t")
        if host != known.host:
            if not heads.HOST.fullmatch(host):
                request.host = host
                return _HOST
            known.host = host
    if host is not None:
        request.host = host
    if (length := fields.get(b"content-length")) is not None:
        request.length = int(length)
    connection = fields.get(b"connection")
    if connection is not None and connection not in heads.PLAIN_CONNECTION:
        request.names_hops = True
    if request.target == known.target:
        request.path, request.query = known.path, known.query
        return None
    return _split(request, known)


def _split(request: Request, known: Known) -> Fault | None:
    """Take the target of the request apart."""
    target = request.target
    if target[:1] != b"/":
        target = _origin_form(request)
    if not heads.TARGET.fullmatch(target):
        return _TARGET
    path, mark, query = target.partition(b"?")
    request.path = path
    if mark:
        request.query = query
    if request.target[:1] == b"/":
        known.target, known.path, known.query = target, path, query
    return None


def _origin_form(request: Request) -> bytes:
    """Return the target without scheme and authority, which stands in for Host; nothing for what has no path."""
    target = request.target
    if target == b"*" and request.method == b"OPTIONS":
        return target
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return b""
    at = min((each for each in (rest.find(b"/"), rest.find(b"?")) if each >= 0), default=len(rest))
    authority, tail = rest[:at], rest[at:]
    if not heads.HOST.fullmatch(authority):
        return b""
    request.host = authority
    return tail if tail[:1] == b"/" else b"/" + tail


def size_of(request: Request) -> int:
    """Return about how many bytes the head of ``request`` had."""
    return len(request.target) + 20 + sum(len(name) + len(value) + 4 for name, value in request.headers)


def worth_swallowing(request: Request, limits: Limits) -> bool:
    """Tell whether the body of a refused request is read to its end, so that the connection can be used on."""
    if request.expects:
        return False
    return request.chunked or (request.length or 0) <= limits.swallowed_bytes
