"""The answer to one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from gpustack.dataplane.http import heads
from gpustack.dataplane.http.known import KnownAnswer
from gpustack.dataplane.http.request import Header, Headers, Refusal, Request

if TYPE_CHECKING:
    from gpustack.dataplane.http.server_protocol import ServerProtocol

#: How the body is framed: not at all (HEAD, 204), as it comes, in chunks, or by the end of the connection.
_NONE, _PLAIN, _CHUNKED, _UNTIL_CLOSE = range(4)


class Reply(msgspec.Struct, eq=False):
    """Writes one answer; made anew for each request, so that a late word never gets into somebody else's answer.

    Everything is quiet nonsense after the end or when the client has left (``gone``). ``status`` is 0 before
    the start, ``sent`` counts bytes of the answer without its head.

    A Struct, as making one costs a fraction of an ``__init__``, and is done for each request.
    """

    _protocol: ServerProtocol
    request: Request
    status: int = 0
    sent: int = 0
    gone: bool = False
    ended: bool = False
    #: Whether the framing is the engine's own.
    raw: bool = False
    _framing: int = _PLAIN
    _left: int | None = None
    #: A head that has not been sent.
    _pending: bytes = b""
    _on_gone: Callable[[], None] | None = None
    _on_drain: Callable[[], None] | None = None

    # What goes out --------------------------------------------------------------------------------------

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Give the whole answer at once. Raises ValueError for headers that cannot be sent, RuntimeError after start."""
        head = self._head(status, heads.own_lines(headers), len(body))
        if head is None:
            return
        if self._framing != _NONE:
            self._left = None
            self.sent = len(body)
            head += body
        self._protocol.send(head)
        self._finish()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal."""
        if refusal.close:
            self._protocol.last()
        self.answer(refusal.status, refusal.headers, refusal.body)

    def start(self, status: int, headers: Iterable[Header], length: int | None = None) -> None:
        """Begin an answer of ``length`` bytes, or of as many as will be written.

        Raises ValueError for headers that cannot be sent, RuntimeError for a second start.
        """
        head = self._head(status, heads.own_lines(headers), length)
        if head is not None:
            self._protocol.send(head)

    def write(self, data: bytes) -> None:
        """Send a piece of the body, framed as :meth:`start` said. Raises RuntimeError beyond the length."""
        if self.ended or self.gone or not data or self._framing == _NONE:
            return
        size = len(data)
        if self._left is not None:
            if size > self._left:
                raise RuntimeError("an answer is longer than it said")
            self._left -= size
        self.sent += size
        if self._framing == _CHUNKED:
            data = b"%x\r\n%b\r\n" % (size, data)
        self._protocol.send(data)

    def end(self) -> None:
        """End the answer. One that is shorter than it said ends the connection."""
        if self.ended or self.gone:
            return
        if not self.status:
            raise RuntimeError("an answer ends before it has begun")
        if self._left:
            self.abort()
            return
        if self._pending:
            self._flush()
        if self._framing == _CHUNKED:
            self._protocol.send(b"0\r\n\r\n")
        self.ended = True
        self._on_gone = self._on_drain = None
        self._protocol.finished()

    def abort(self) -> None:
        """End the connection, so that the client sees that the answer is not whole."""
        if not self.ended and not self.gone:
            self._flush()
            self.ended = True
            self._forget()
            # What ends with the connection looks whole after an orderly end.
            self._protocol.break_off(hard=self._framing == _UNTIL_CLOSE)

    # What passes through --------------------------------------------------------------------------------

    def pass_head(
        self,
        status: int,
        headers: Headers,
        *,
        extra: bytes = b"",
        reframe: bool = False,
        without: frozenset[bytes] = heads.NOT_FOR_CLIENTS,
    ) -> None:
        """Begin with the head of an engine's answer; its body follows by :meth:`pass_data`, then :meth:`end`.

        The head goes out with the next of these calls, in one packet; an empty piece sends it alone.

        The engine's framing is kept where this client understands it and ``reframe`` does not ask for one of our
        own, as it must when the body is changed. ``extra`` are lines of our own, ``without`` what is left out.
        Raises RuntimeError for a second start.
        """
        kept = [extra]
        framing = b""
        chunked = False
        for header in headers:
            name, value = header
            if name == b"content-length":
                framing = b"content-length: %b\r\n" % value
            elif name == b"transfer-encoding":
                framing = b"transfer-encoding: chunked\r\n"
                chunked = True
            elif name == b"connection" and value not in heads.PLAIN_CONNECTION:
                without |= heads.named_by_connection(headers)
        kept.extend([b"%b: %b\r\n" % header for header in headers if header[0] not in without])
        if reframe or not framing or (chunked and self.request.version == "1.0"):
            # Its own framing is of no use: none at all, chunks for HTTP/1.0, or that of another body.
            framing = b""
        self.raw = bool(framing)
        head = self._head(status, b"".join(kept), None, framing)
        if head is not None:
            self._pending = head

    def pass_whole(self, known: KnownAnswer, length: bytes, body: bytes, *, extra: bytes = b"") -> None:
        """Give an engine's whole answer: :meth:`pass_head`, :meth:`pass_data` and :meth:`end` in one."""
        protocol, request = self._protocol, self.request
        if (
            self.status
            or self.gone
            or not protocol.keeps
            or protocol.server.draining
            or request.version == "1.0"
        ):
            self.pass_head(known.status, known.headers(length), extra=extra)
            self.pass_data(body, body)
            self.end()
            return
        self.status = known.status
        self.sent = len(body)
        self.raw = True
        first = heads.STATUS_LINES.get(known.status) or heads.status_line(known.status)
        protocol.send(
            b"%bdate: %b\r\n%b%bcontent-length: %b\r\n\r\n%b"
            % (first, protocol.server.date, extra, known.client_lines, length, body)
        )
        self.ended = True
        self._on_gone = None
        protocol.finished()

    def pass_data(self, body: bytes, raw: bytes) -> None:
        """Send a piece of an engine's body: as the engine framed it (``raw``) where that is kept, else ``body`` anew."""
        if not self.raw:
            if self._pending:
                self._flush()
            self.write(body)
        elif not self.ended and not self.gone:
            if self._framing == _NONE:
                raw = b""
            else:
                self.sent += len(body)
            if self._pending:
                raw = self._pending + raw
                self._pending = b""
            if raw:
                self._protocol.send(raw)

    @property
    def in_chunks(self) -> bool:
        """Whether what is written goes out in chunks of our own."""
        return self._framing == _CHUNKED and not self.raw

    def pass_chunk(self, chunk: bytes, size: int) -> bool:
        """Send a whole chunk with ``size`` bytes of the body, as :meth:`write` would have made it.

        For an answer that goes out ``in_chunks``. Return whether the client is too slow, as ``paused`` tells.
        """
        if self._pending:
            self._flush()
        self.sent += size
        protocol = self._protocol
        protocol.send(chunk)
        return protocol.write_paused

    def pass_raw(self, data: bytes) -> None:
        """Send bytes as they are, after :meth:`pass_head` has kept the engine's framing."""
        self.pass_data(data, data)

    def _flush(self) -> None:
        if self._pending and not self.ended and not self.gone:
            head, self._pending = self._pending, b""
            self._protocol.send(head)

    # The client's pace ----------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the client takes less than is written: stop until :meth:`on_drain` calls."""
        return self._protocol.write_paused

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, when the client has taken most of what was written; not when it leaves."""
        self._on_drain = callback

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once if the client leaves before the answer has ended. Takes the place of an earlier one."""
        self._on_gone = callback

    # What the protocol calls ----------------------------------------------------------------------------

    def drained(self) -> None:
        """The client has caught up."""
        callback, self._on_drain = self._on_drain, None
        if callback is not None:
            callback()

    def lost(self) -> None:
        """The client has left."""
        self.gone = True
        callback = self._on_gone
        self._forget()
        if callback is not None:
            callback()

    def _finish(self) -> None:
        self.ended = True
        self._forget()
        self._protocol.finished()

    def _forget(self) -> None:
        self._on_gone = self._on_drain = None

    def _head(self, status: int, own: bytes, length: int | None, framing: bytes = b"") -> bytes | None:
        """Return the head, and decide on the framing; None when nobody listens any more.

        ``framing`` is a line with the engine's own, if that is kept.
        """
        if self.status:
            raise RuntimeError("an answer has begun already")
        self.status = status
        if self.gone or self.ended:
            return None
        request = self.request
        if status in {204, 304}:
            self._framing = _NONE
            framing = b"" if status == 204 else framing
        elif framing:
            self._framing = _NONE if request.head_only else _PLAIN
        elif length is not None:
            framing = b"content-length: %d\r\n" % length
            self._framing = _NONE if request.head_only else _PLAIN
            self._left = None if request.head_only else length
        elif request.head_only:
            self._framing = _NONE
        elif request.version == "1.0":
            self._framing = _UNTIL_CLOSE
            self._protocol.last()
        else:
            framing = b"transfer-encoding: chunked\r\n"
            self._framing = _CHUNKED
        protocol = self._protocol
        server = protocol.server
        if server.draining:
            protocol.last()
        if not protocol.keeps:
            framing += b"connection: close\r\n"
        elif request.version == "1.0":
            framing += b"connection: keep-alive\r\n"
        first = heads.STATUS_LINES.get(status) or heads.status_line(status)
        return b"%bdate: %b\r\n%b%b\r\n" % (first, server.date, own, framing)
