"""Heads that were found valid before, told by their bytes, so that who says the same again is understood without a parser.

A client repeats its head byte by byte, but for the size of the body and, behind a proxy of many users, the credential. An
engine repeats its own but for the size. What the strict parser made of these bytes once, it would make of them again: both
times they begin where a message begins, and the values that differ are of letters and digits that mean nothing to it. A
message is taken that way only as a whole, with its body to the last byte; everything else goes through the parser.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gpustack.dataplane.http import heads
from gpustack.dataplane.http.request import Header, Headers, Request

#: Heads that are remembered; clients and engines are of few kinds.
_MOST = 256
#: The longest one that is.
_LONGEST = 4096
#: Digits of a length: none of so few is too large for anybody.
DIGITS = 9
#: What a credential may consist of and mean nothing to a parser; deleted from one, nothing is left.
PLAIN = bytes(range(0x20, 0x7F))
_CREDENTIALS = frozenset((b"authorization", b"x-api-key"))


class KnownRequest:
    """The head of a request but for two values, that of Content-Length and that of its one credential.

    ``note`` is the service's own: what it knows by the head alone.
    """

    __slots__ = (
        "_credential_at",
        "_headers",
        "_length_at",
        "after",
        "before",
        "between",
        "credential_first",
        "engine_lines",
        "host",
        "method",
        "note",
        "path",
        "query",
        "rest",
        "size",
        "skip",
        "target",
    )

    def __init__(
        self, parts: tuple[bytes, bytes, bytes], request: Request, *, credential_first: bool
    ) -> None:
        self.before, self.between, self.after = parts
        self.size, self.skip, self.rest = map(len, parts)
        self.credential_first = credential_first
        self.method = request.method
        self.target = request.target
        self.path = request.path
        self.query = request.query
        self.host = request.host
        self.note: Any = None
        self._headers = headers = list(request.headers)
        names = [name for name, _ in headers]
        self._length_at = names.index(b"content-length")
        self._credential_at = next(at for at, name in enumerate(names) if name in _CREDENTIALS)
        #: The lines that engines get.
        self.engine_lines = _lines(headers, heads.NOT_FOR_ENGINES)

    def headers(self, length: int, credential: bytes) -> Headers:
        """Return the headers of a request with these values."""
        found = self._headers.copy()
        found[self._length_at] = (b"content-length", b"%d" % length)
        found[self._credential_at] = (found[self._credential_at][0], credential)
        return found


class KnownRequests:
    """What clients of one server have said."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes, bytes], KnownRequest] = {}

    def learn(self, head: bytes, request: Request) -> KnownRequest | None:
        """Return what is known of a valid ``head``, from now on at least; None for one that is seldom the same.

        Nothing in it may be there twice, or rare: ``request`` has its ``fields``.
        """
        fields = request.fields
        names = _CREDENTIALS.intersection(fields or ())
        if fields is None or len(names) != 1 or request.names_hops or request.head_only:
            return None
        if request.version != "1.1":
            return None
        if len(head) > _LONGEST or request.target != request.path + (
            b"?" + request.query if request.query else b""
        ):
            return None
        (name,) = names
        credential, length = (
            _place(head, name, fields[name]),
            _place(head, b"content-length", fields[b"content-length"]),
        )
        if credential is None or length is None:
            return None
        first, second = sorted((credential, length))
        parts = (head[: first[0]], head[first[1] : second[0]], head[second[1] :])
        known = self._known.get(parts)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[parts] = KnownRequest(parts, request, credential_first=first == credential)
        return known


class KnownAnswer:
    """The head of an engine's answer but for the digits of its Content-Length. ``note`` is the sink's own."""

    __slots__ = (
        "_headers",
        "_length_at",
        "after",
        "before",
        "client_lines",
        "note",
        "rest",
        "size",
        "status",
    )

    def __init__(self, parts: tuple[bytes, bytes], status: int, headers: Headers) -> None:
        self.before, self.after = parts
        self.size, self.rest = map(len, parts)
        self.status = status
        self.note: Any = None
        self._headers = list(headers)
        self._length_at = [name for name, _ in headers].index(b"content-length")
        #: How the answer to a client begins, and the lines of the engine's that it gets.
        self.client_lines = _lines(headers, heads.NOT_FOR_CLIENTS)

    def headers(self, length: bytes) -> Headers:
        """Return the headers of an answer of this ``length``."""
        found = self._headers.copy()
        found[self._length_at] = (b"content-length", length)
        return found


class KnownAnswers:
    """What the engines of one upstream have said."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], KnownAnswer] = {}

    def learn(self, head: bytes, status: int, headers: Headers) -> KnownAnswer | None:
        """Return what is known of a valid ``head``, from now on at least; None for one that is seldom the same."""
        fields = dict(headers)
        if len(fields) != len(headers) or len(head) > _LONGEST:
            return None
        if (
            fields.get(b"connection", b"keep-alive") not in heads.PLAIN_CONNECTION
            or b"transfer-encoding" in fields
        ):
            return None
        length = _place(head, b"content-length", fields.get(b"content-length", b""))
        if length is None:
            return None
        parts = (head[: length[0]], head[length[1] :])
        known = self._known.get(parts)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[parts] = KnownAnswer(parts, status, headers)
        return known


def _lines(headers: Collection[Header], without: frozenset[bytes]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers if header[0] not in without])


def _place(head: bytes, name: bytes, value: bytes) -> tuple[int, int] | None:
    """Return where the value of the header ``name`` begins and ends; None where it is not written plainly."""
    at = head.lower().find(b"\r\n%b:" % name)
    if at < 0 or not value or value.translate(None, PLAIN):
        return None
    start = at + len(name) + 3
    start += head.startswith(b" ", start)
    end = head.find(b"\r\n", start)
    return (start, end) if head[start:end] == value else None
