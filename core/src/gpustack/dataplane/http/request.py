"""What a client asks, and what the part that answers has to offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gpustack.dataplane.errors import ApiError

if TYPE_CHECKING:
    from gpustack.dataplane.http.known import KnownRequest
    from gpustack.dataplane.http.reply import Reply

Header = tuple[bytes, bytes]
Headers = list[Header]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer instead of what was asked. With ``close`` the connection ends after it."""

    status: int
    headers: tuple[Header, ...]
    body: bytes
    close: bool = False


@dataclass(frozen=True, slots=True)
class BodyPlan:
    """How a body is to be taken. ``limit`` is bytes; None: the server's own.

    The body of a ``stranger``, who has shown no credential that the service knows, takes no room from others.
    """

    limit: int | None = None
    stranger: bool = False


class Request(msgspec.Struct, eq=False):
    """One request. Nothing of it changes once it has been handed over.

    ``path`` and ``query`` are as they were sent, still escaped; an authority in the request line is taken off.
    The names of ``headers`` are lower case and their values as sent, in the order sent, without any word on
    where the request came from. ``peer`` is the client's address, by a trusted proxy's word if that connects, empty on a
    local socket; ``tls`` is the same for the client's encryption.

    A Struct, as making one costs a fraction of an ``__init__``, and is done for each request.
    """

    peer: str
    tls: bool
    method: bytes = b""
    target: bytes = b""
    path: bytes = b""
    query: bytes = b""
    host: bytes = b""
    body: bytes = b""
    #: What Content-Length says; None without one.
    length: int | None = None
    #: Bytes of the body that have arrived.
    size: int = 0
    keep_alive: bool = False
    #: What its head is known as, and its credential without a scheme; then it has only ordinary headers, each once.
    known: KnownRequest | None = None
    credential: bytes = b""
    version: str = "1.1"
    head_only: bool = False
    chunked: bool = False
    expects: bool = False
    #: Whether Connection names headers that are for one hop only.
    names_hops: bool = False
    plan: BodyPlan | None = None
    #: Who answers for the bytes of the body, said by the service in ``begin``: the same number for the same one.
    owner: int | None = None
    refusal: Refusal | None = None
    #: The service's own; this layer does not look at it.
    context: Any = None
    _headers: Headers | None = None
    _fields: dict[bytes, bytes] | None = None

    @property
    def headers(self) -> Headers:
        """The header fields."""
        if self._headers is None:
            known = self.known
            self._headers = [] if known is None else known.headers(self.length or 0, self.credential)
        return self._headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers

    @property
    def fields(self) -> dict[bytes, bytes] | None:
        """The same by name, where nothing is there twice and nothing was left out; None where that is not known."""
        if self._fields is None and self.known is not None:
            self._fields = dict(self.headers)
        return self._fields

    @fields.setter
    def fields(self, fields: dict[bytes, bytes]) -> None:
        self._fields = fields

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of header ``name`` (lower case) without the spaces around it; None without one."""
        for each, value in self.headers:
            if each == name:
                return value.strip(b" \t")
        return None


class Service(Protocol):
    """What answers requests."""

    def begin(self, request: Request) -> Refusal | BodyPlan:
        """Judge a request by its head: path, credential, size. Its body has not come.

        Called once, before :meth:`handle`, in the order of arrival; with pipelining it can be called while an
        earlier request of the same connection is still being answered. Not called for what is no valid HTTP.
        """
        ...

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request whose body is complete, now or later.

        Called once, unless the client has left or the request was refused, and for one request of a connection
        at a time: the next follows when the answer has ended. An exception becomes a 500 or, when the answer
        has begun, the end of the connection.
        """
        ...


#: Makes the body of an error that this layer answers by itself; the request is None when it could not be read.
ErrorBody = Callable[[Request | None, int, str, str], bytes]


def openai_error(request: Request | None, status: int, message: str, code: str) -> bytes:
    """Return an error in the shape that OpenAI's clients expect."""
    return ApiError(status, message, code=code).body()
