"""The names, patterns and pieces that the heads of messages are made and judged by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from gpustack.dataplane.hops import DOOR_SAYS
from gpustack.dataplane.http.request import Header, Request

#: For one hop only, whatever Connection says.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
#: Written anew by whoever sends a request on.
_ANEW = frozenset((b"content-length", b"expect", b"host"))
#: Headers that are not sent on to our own server.
NOT_FOR_SERVERS = HOP_BY_HOP | _ANEW
#: Headers that are not sent on to an engine: credentials never reach one, the request's id is ours, and of an answer that
#: it compressed nobody could tell what it took.
NOT_FOR_ENGINES = NOT_FOR_SERVERS | {
    b"accept-encoding",
    b"authorization",
    b"api-key",
    b"cookie",
    b"x-api-key",
    b"x-request-id",
}
#: Where a request is said to come from. Some frameworks take an underscore for a hyphen.
FORWARDING = frozenset(
    spelt
    for name in (
        b"forwarded",
        b"x-forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    )
    for spelt in (name, name.replace(b"-", b"_"))
)
#: Of an engine's answer: it neither sets cookies at our address, nor opens it to other origins, nor speaks for a door.
NOT_FOR_CLIENTS = HOP_BY_HOP | {
    b"content-length",
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-allow-private-network",
    b"access-control-expose-headers",
    b"access-control-max-age",
    b"date",
    b"server",
    b"set-cookie",
    b"set-cookie2",
    b"x-accel-buffering",
    b"x-request-id",
    DOOR_SAYS,
}
#: Of our own server's answer, which speaks for itself.
NOT_FROM_SERVERS = HOP_BY_HOP | {b"content-length", b"date", b"server"}

#: What Connection usually says, and what names no header.
PLAIN_CONNECTION = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close"))
#: A host or an address, with a port or not.
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\]|[A-Za-z0-9_~!$&'()*+,;=%.-]+)(?::[0-9]{0,5})?")
#: Everything that may be in a request line unescaped; a fragment is never sent.
TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")
_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_CACHED_LINES, _CACHED_LINE = 512, 128
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def status_line(status: int) -> bytes:
    """Return the first line of an answer."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    """Return the names of the headers that Connection declares to be for one hop only."""
    values = [value for name, value in headers if name == b"connection" and value not in PLAIN_CONNECTION]
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def own_lines(headers: Iterable[Header]) -> bytes:
    """Return headers that we made ourselves. Raises ValueError when one could be read as something else."""
    found = b""
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"header {name!r} cannot be sent")
        found += b"%b: %b\r\n" % (name, value)
    return found


class FieldCache:
    """Takes header lines apart. Engines say the same again and again: looked up, that costs a fifth."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Header] = {}

    def parse(self, raw_head: bytes) -> list[Header]:
        """Return the header fields of a head that a strict parser has accepted, which ends with its empty line."""
        known = self._known
        return [known.get(line) or self._new(line) for line in raw_head.split(b"\r\n")[1:-2]]

    def _new(self, line: bytes) -> Header:
        name, _, value = line.partition(b":")
        field = (name.lower(), value.strip(b" \t"))
        if len(line) <= _CACHED_LINE:
            if len(self._known) >= _CACHED_LINES:
                self._known.clear()
            self._known[line] = field
        return field


def host_header(host: str, port: int) -> bytes:
    """Return what Host says for an address."""
    return f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()


def request_line(method: bytes, target: bytes, host: bytes) -> bytes:
    """Return request line and Host, the beginning of :func:`request_head`. ``target`` is path and query.

    Raises ValueError when one of them cannot be sent.
    """
    if not (_NAME.fullmatch(method) and TARGET.fullmatch(target) and HOST.fullmatch(host)):
        raise ValueError(f"no request can be made of {method!r} {target!r} to {host!r}")
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, host)


def request_head(
    first: bytes,
    request: Request,
    length: int,
    *,
    without: frozenset[bytes] = NOT_FOR_ENGINES,
    extra: bytes = b"",
) -> bytes:
    """Return the whole head of a request that is sent on.

    ``first`` comes from :func:`request_line` and may have further lines of one's own after it, as ``extra`` has
    (``b"name: value\\r\\n"``). Of the headers of ``request`` those in ``without`` and those that its Connection
    names are left out. ``length`` is that of the body that follows, whatever the client's was; without any, only
    methods that should have one say so.
    """
    known = request.known
    if known is not None and without is NOT_FOR_ENGINES:
        return b"%b%b%bcontent-length: %d\r\n\r\n" % (first, known.engine_lines, extra, length)
    headers = request.headers
    if request.names_hops:
        without |= named_by_connection(headers)
    kept = [b"%b: %b\r\n" % header for header in headers if header[0] not in without]
    end = b"\r\n"
    if length or request.method in _WITH_BODY:
        end = b"content-length: %d\r\n\r\n" % length
    return b"%b%b%b%b" % (first, b"".join(kept), extra, end)
