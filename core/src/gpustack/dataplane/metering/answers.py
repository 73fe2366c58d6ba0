"""Usage read out of an engine's answer while it passes.

:func:`answer_reader` gives the reader for an answer's head. Each piece of the body goes through ``feed``, which returns
what the client is to get; ``end`` returns what is still to be sent. ``usage`` may be asked at any time, and is what
there is to bill when the answer ends there: the engine's own counts, or an estimate from the pieces seen::

    reader = answer_reader(b"text/event-stream", prompt_bytes=len(body), forced=forced, clock=loop.time)
    reply.write(reader.feed(piece))
    reply.write(reader.end())
    reader.usage

Only a usage that is a member where the API has it counts; the same text inside a message is just text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec

from gpustack.dataplane.metering.members import BadJson, Scanner, Wanted
from gpustack.dataplane.metering.streams import StreamReader
from gpustack.dataplane.metering.usage import MOST, Clock, Tally, Usage, settle

#: Answers up to this are kept until they end and read at once; of larger ones only the wanted members are kept.
_AT_ONCE = 64 << 10
_MEMBERS = Wanted.of("usage", "timings")


class AnswerReader(Protocol):
    """Follows one answer."""

    #: Pieces of a stream that hold text, about one a token; 0 for what is no stream.
    chunks: int
    #: When the first and the last piece came, by the reader's clock; None while nothing has come.
    first_at: float | None
    last_at: float | None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes; return what goes to the client, the same object when nothing is removed."""

    def end(self) -> bytes:
        """Say that the answer has ended, however it did; return what the client is still to get."""

    @property
    def usage(self) -> Usage:
        """What the answer has taken so far."""


def answer_reader(
    content_type: bytes,
    *,
    encoding: bytes = b"",
    status: int = 200,
    prompt_bytes: int = 0,
    forced: bool = False,
    estimate: bool = True,
    clock: Clock,
    between: Callable[[float], None] | None = None,
) -> AnswerReader:
    """Return the reader for an answer with these headers (values as sent, empty when missing) and status.

    ``prompt_bytes`` is the size of the request's body, for estimates (0 for a form: files are no prompt); ``estimate`` False is for operations that take no
    tokens, such as ``/tokenize``, and errors never do. ``forced`` says that :func:`~gpustack.dataplane.metering.requests.
    force_usage` changed the request. ``between`` is told the seconds between two pieces of a stream, some at a time; the last
    of them by the stream reader's ``tell_gaps``.
    """
    estimate = estimate and status < 400
    if content_type == b"application/json" and not encoding:
        return JsonReader(prompt_bytes, estimate=estimate, clock=clock)
    kind = content_type.partition(b";")[0].strip().lower()
    if encoding.strip().lower() not in (b"", b"identity"):
        return OpaqueReader(prompt_bytes, estimate=estimate, clock=clock)
    if kind == b"text/event-stream":
        return StreamReader(prompt_bytes, forced=forced, estimate=estimate, clock=clock, between=between)
    if kind == b"application/json" or kind.endswith(b"+json"):
        return JsonReader(prompt_bytes, estimate=estimate, clock=clock)
    return OpaqueReader(prompt_bytes, estimate=estimate, clock=clock)


def read_document(body: bytes, *, prompt_bytes: int, estimate: bool) -> Usage:
    """Return what a whole JSON document took: what a :class:`JsonReader` says of it."""
    if len(body) <= _AT_ONCE:
        try:
            return _plain(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # it is told in another way, or not at all
    reader = JsonReader(prompt_bytes, estimate=estimate, clock=_no_clock)
    reader.feed(body)
    reader.end()
    return reader.usage


def read_all(content_type: bytes, body: bytes, *, forced: bool = False) -> tuple[bytes, Usage]:
    """Return what a client gets of a whole answer, and what it took: the readers as one function, for fuzzers."""
    reader = answer_reader(content_type, forced=forced, clock=lambda: 0.0)
    sent = reader.feed(body) + reader.end()
    return sent, reader.usage


class OpaqueReader:
    """For bodies that cannot be read: compressed ones, audio, images. Their usage is an estimate from the prompt."""

    __slots__ = ("_clock", "_estimate", "_prompt_bytes", "first_at", "last_at")

    chunks = 0

    def __init__(self, prompt_bytes: int, *, estimate: bool, clock: Clock) -> None:
        self._prompt_bytes = prompt_bytes
        self._estimate = estimate
        self._clock = clock
        self.first_at: float | None = None
        self.last_at: float | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes."""
        self.last_at = now = self._clock()
        if self.first_at is None:
            self.first_at = now
        return piece

    def end(self) -> bytes:
        """Say that the answer has ended."""
        return b""

    @property
    def usage(self) -> Usage:
        """The estimate."""
        return settle(
            Tally(), prompt_bytes=self._prompt_bytes, chunks=0, final=False, estimate=self._estimate
        )


class _Document(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    timings: msgspec.Raw = msgspec.Raw()


_Count = Annotated[int, msgspec.Meta(ge=0, lt=MOST)]


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class _Plain(msgspec.Struct, gc=False):
    """Usage as nearly every engine tells it."""

    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _Details | None = None


class _PlainDocument(msgspec.Struct, gc=False):
    usage: _Plain


_decode = msgspec.json.Decoder(_Document).decode
_decode_plain = msgspec.json.Decoder(_PlainDocument).decode


def _plain(body: bytes) -> Usage:
    said = _decode_plain(body).usage
    details = said.prompt_tokens_details
    cached = 0 if details is None else details.cached_tokens or 0
    return Usage(said.prompt_tokens, cached, said.completion_tokens)


def _no_clock() -> float:
    return 0.0


class JsonReader:
    """For one JSON document. It is read when it ends; of a large one the wanted members are found as it passes."""

    __slots__ = (
        "_clock",
        "_estimate",
        "_parts",
        "_prompt_bytes",
        "_scanner",
        "_size",
        "_tally",
        "_told",
        "first_at",
        "last_at",
    )

    chunks = 0

    def __init__(self, prompt_bytes: int, *, estimate: bool, clock: Clock) -> None:
        self._prompt_bytes = prompt_bytes
        self._estimate = estimate
        self._clock = clock
        self._parts: list[bytes] = []
        self._size = 0
        self._scanner: Scanner | None = None
        #: None until it is needed, which it is not where an answer tells its usage in the usual form.
        self._tally: Tally | None = None
        self._told: Usage | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes; they are returned as they are."""
        self.last_at = now = self._clock()
        if self.first_at is None:
            self.first_at = now
        self._parts.append(piece)
        self._size = size = self._size + len(piece)
        if size > _AT_ONCE:
            self._scan()
        return piece

    def end(self) -> bytes:
        """Read what there is."""
        if self._size <= _AT_ONCE:
            self._read()
        elif self._scanner is not None:
            self._tally = tally = Tally()
            for raw in self._scanner.found.get("usage", ()):
                tally.take_usage(raw.raw)
            for raw in self._scanner.found.get("timings", ()):
                tally.take_timings(raw.raw)
        self._parts.clear()
        return b""

    @property
    def usage(self) -> Usage:
        """What the document says; an estimate before its end and when it says nothing."""
        if self._told is not None:
            return self._told
        tally = self._tally or Tally()
        return settle(tally, prompt_bytes=self._prompt_bytes, chunks=0, final=False, estimate=self._estimate)

    def _read(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if b'"usage"' in body:
            try:
                self._told = _plain(body)
                return
            except (msgspec.DecodeError, ValueError, RecursionError):
                pass  # it is told in another way, or not at all
        elif b'"timings"' not in body:
            return
        try:
            document = _decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        self._tally = tally = Tally()
        if not document.usage or not tally.take_usage(document.usage):
            tally.take_timings(document.timings)

    def _scan(self) -> None:
        if self._size - len(self._parts[-1]) <= _AT_ONCE:
            self._scanner = Scanner(_MEMBERS)
        if self._scanner is not None:
            try:
                for part in self._parts:
                    self._scanner.feed(part)
            except BadJson:
                self._scanner = None
        self._parts.clear()
