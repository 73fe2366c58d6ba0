"""A second reading of HTTP/1.1, by the letter of RFC 9112 and without any tolerance: what other readers are held against.

It is written to be obviously right, not fast, and shares nothing with the parsers of the product. It takes a few liberties,
where those are known to take them and nothing follows from it, since heads are written anew: line ends before a request,
several spaces in its first line, ``RTSP`` or ``ICE`` for ``HTTP``; in answers any reason phrase, and trailers by any name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Header = tuple[bytes, bytes]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") +([\x21-\x7e\x80-\xff]+) +(?:HTTP|RTSP|ICE)/(1\.[01])")
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3})(?: [^\r\n]*)?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")


class Bad(Exception):
    """What came is not valid."""


class More(Exception):
    """What came is the beginning of something valid, as far as anybody can tell."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer; it stands in ``data[start:body_at]`` and ``data[body_at:end]``."""

    #: Method and target, or the status.
    first: tuple[bytes, ...]
    version: bytes
    headers: tuple[Header, ...]
    body: bytes
    start: int
    body_at: int
    end: int
    #: Whether it ends with the connection.
    until_close: bool = False

    @property
    def keep_alive(self) -> bool:
        """Whether another message may follow."""
        tokens = {
            token.strip(b" \t").lower()
            for name, value in self.headers
            if name == b"connection"
            for token in value.split(b",")
        }
        if b"close" in tokens or self.until_close:
            return False
        return self.version == b"1.1" or b"keep-alive" in tokens


def requests_in(data: bytes) -> tuple[list[Message], int, bool]:
    """Return the requests at the beginning of ``data``, where they end, and whether what follows is wrong for sure."""
    found: list[Message] = []
    position = 0
    while True:
        while data[position : position + 1] in (b"\r", b"\n"):
            position += 1
        if position == len(data):
            return found, position, False
        try:
            message = _request(data, position)
        except Bad:
            return found, position, True
        except More:
            return found, position, False
        found.append(message)
        position = message.end


def answer_in(data: bytes, *, head_only: bool = False, closed: bool = False) -> Message:
    """Return the final answer at the beginning of ``data``; with ``closed`` nothing follows. Raises Bad or More."""
    position = 0
    while True:
        message = _answer(data, position, head_only=head_only, closed=closed)
        if not message.first[0].startswith(b"1"):
            return message
        position = message.end


def _request(data: bytes, start: int) -> Message:
    line, position = _line(data, start)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Bad
    headers, position = _fields(data, position)
    length, chunked = _framing(headers)
    if chunked and match[3] == b"1.0":
        raise Bad
    body, end = (
        _chunks(data, position, strict_trailers=True) if chunked else _exactly(data, position, length or 0)
    )
    return Message((match[1], match[2]), match[3], headers, body, start, position, end)


def _answer(data: bytes, start: int, *, head_only: bool, closed: bool) -> Message:
    line, position = _line(data, start)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Bad
    headers, position = _fields(data, position)
    status = match[2]
    length, chunked = _framing(headers)
    if chunked and match[1] == b"1.0":
        raise Bad
    until_close = False
    if head_only or status.startswith(b"1") or status in (b"204", b"304"):
        body, end = b"", position
    elif chunked:
        body, end = _chunks(data, position)
    elif length is not None:
        body, end = _exactly(data, position, length)
    elif closed:
        body, end, until_close = data[position:], len(data), True
    else:
        raise More
    return Message((status,), match[1], headers, body, start, position, end, until_close)


def _line(data: bytes, start: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", start)
    line = data[start:end] if end >= 0 else data[start:]
    if b"\n" in line or (b"\r" in line and not (end < 0 and line.find(b"\r") == len(line) - 1)):
        raise Bad
    if end < 0:
        raise More
    return line, end + 2


def _fields(data: bytes, position: int) -> tuple[tuple[Header, ...], int]:
    fields: list[Header] = []
    while True:
        line, position = _line(data, position)
        if not line:
            return tuple(fields), position
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Bad
        fields.append((match[1].lower(), match[2].strip(b" \t")))


def _framing(headers: Sequence[Header]) -> tuple[int | None, bool]:
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Bad
    if codings and codings[0].lower() != b"chunked":
        raise Bad
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise Bad
    return int(lengths[0]) if lengths else None, bool(codings)


def _exactly(data: bytes, position: int, length: int) -> tuple[bytes, int]:
    if len(data) - position < length:
        raise More
    return data[position : position + length], position + length


def _chunks(data: bytes, position: int, *, strict_trailers: bool = False) -> tuple[bytes, int]:
    body = b""
    while True:
        line, position = _line(data, position)
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise Bad
        size = int(match[1], 16)
        if not size:
            trailers, position = _fields(data, position)
            framing = any(name in (b"content-length", b"transfer-encoding") for name, _ in trailers)
            if framing and strict_trailers:
                raise Bad
            return body, position
        piece, position = _exactly(data, position, size)
        body += piece
        if not b"\r\n".startswith(data[position : position + 2]):
            raise Bad
        if len(data) < position + 2:
            raise More
        position += 2
