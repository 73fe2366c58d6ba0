"""Heads that were found valid before, told by their bytes, so that who says the same again is understood without a parser.

A client repeats its head byte by byte, but for the size of the body and, behind a proxy of many users, the credential. An
engine repeats its own but for the size. What the strict parser made of these bytes once, it would make of them again: both
times they begin where a message begins, and the values that differ are of letters and digits that mean nothing to it. A
message is taken that way only as a whole, with its body to the last byte; everything else goes through the parser.
"""

from __future__ import annotations

import re
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
PLAIN = bytes(range(0x21, 0x7F))
#: Where a credential may stand, and what comes before it there.
_CREDENTIALS = {b"authorization": b"Bearer ", b"x-api-key": b""}
#: A header with a name like these may hold another secret, and nothing that is kept here may be one.
_SECRETS = re.compile(rb"auth|cookie|credential|key|passw|secret|session|signature|token")


class KnownRequest:
    """The head of a request but for two values, that of Content-Length and its one credential, of which nothing is kept.

    ``note`` is the service's own: what it knows by the head alone.
    """

    __slots__ = (
        "_credential_at",
        "_headers",
        "_length_at",
        "_scheme",
        "after",
        "before",
        "between",
        "credential_first",
        "engine_lines",
        "host",
        "method",
        "note",
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
        self.host = request.host
        self.note: Any = None
        self._headers = headers = list(request.headers)
        names = [name for name, _ in headers]
        self._length_at = names.index(b"content-length")
        self._credential_at = at = next(at for at, name in enumerate(names) if name in _CREDENTIALS)
        self._scheme = _CREDENTIALS[names[at]]
        headers[at] = (names[at], b"")
        #: The lines that engines get.
        self.engine_lines = _lines(headers, heads.NOT_FOR_ENGINES)

    def headers(self, length: int, credential: bytes) -> Headers:
        """Return the headers of a request with these values."""
        found = self._headers.copy()
        found[self._length_at] = (b"content-length", b"%d" % length)
        at = self._credential_at
        found[at] = (found[at][0], self._scheme + credential)
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
        if fields is None or request.names_hops or request.head_only or request.version != "1.1":
            return None
        # A query may hold whatever its sender takes for a good idea.
        if len(head) > _LONGEST or request.target != request.path:
            return None
        secrets = [name for name in fields if _SECRETS.search(name)]
        if len(secrets) != 1 or (scheme := _CREDENTIALS.get(secrets[0])) is None:
            return None
        credential = _place(head, secrets[0], fields[secrets[0]], scheme)
        length = _place(head, b"content-length", fields[b"content-length"])
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
            or b"set-cookie" in fields
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


def _place(head: bytes, name: bytes, value: bytes, scheme: bytes = b"") -> tuple[int, int] | None:
    """Return where the value of the header ``name`` begins, after ``scheme``, and ends; None where it is not plain."""
    at = head.lower().find(b"\r\n%b:" % name)
    if at < 0 or not value.startswith(scheme):
        return None
    start = at + len(name) + 3
    start += head.startswith(b" ", start)
    end = head.find(b"\r\n", start)
    if head[start:end] != value:
        return None
    start += len(scheme)
    return None if start == end or head[start:end].translate(None, PLAIN) else (start, end)
