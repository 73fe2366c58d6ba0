"""One connection to an engine."""

from __future__ import annotations

import asyncio
import math
import re
import select
import sys
from functools import partial
from typing import TYPE_CHECKING, cast

import httptools

from gpustack.dataplane.http.known import DIGITS, KnownAnswer
from gpustack.dataplane.http.limits import FULL_READ
from gpustack.dataplane.http.request import Headers

if TYPE_CHECKING:
    from gpustack.dataplane.http.upstream import Exchange, Upstream

#: llama.cpp closes a connection after a stream, at some time, although it has said that it keeps it.
_STREAM = b"text/event-stream"
_INTERIM = re.compile(rb"HTTP/1\.[01] 1[0-9][0-9][ \r]")
#: One as a whole, by the letter: the parser never sees it.
_INTERIM_HEAD = re.compile(
    rb"HTTP/1\.[01] 1[0-9][0-9](?: [^\r\n]*+)?\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
)
_BEGIN = b"HTTP/1."
_VERSIONS = frozenset((b"1.1", b"1.0"))
_BODILESS = frozenset((204, 304))
_HEAD_END = b"\r\n\r\n"
#: How a chunk ends that ends with an event of a stream, and in how many bytes its size is.
_EVENT_END = b"\n\n\r\n"
_SIZE_LINE = 10
#: Seconds of idleness after which the system is asked whether the other side is still there.
_DOUBT = 0.01


class EngineConnection(asyncio.Protocol):
    """Carries one exchange at a time. Every byte is parsed, also those that are passed on as they are."""

    __slots__ = (
        "_aligned",
        "_answers",
        "_breathes",
        "_chunked",
        "_held",
        "_keep",
        "_known",
        "_last",
        "_open_chunks",
        "_parser",
        "_pieces",
        "_quiet",
        "_status",
        "_transport",
        "_until_close",
        "_upstream",
        "_whole",
        "address",
        "due",
        "exchange",
        "head_done",
        "headers",
        "idle_since",
        "on_body",
        "on_chunk_complete",
        "on_chunk_header",
        "reused",
        "sent_at",
    )

    def __init__(self, upstream: Upstream, address: tuple[str, int]) -> None:
        self._upstream = upstream
        self.address = address
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.sent_at = 0.0
        self.reused = False
        #: When the engine has to have sent more.
        self.due = math.inf
        self._pieces: list[bytes] = []
        #: Called by the parser for each piece of a body.
        self.on_body = self._pieces.append
        #: Not empty while the parser is within a chunk.
        self._open_chunks: list[None] = []
        self.on_chunk_header = partial(self._open_chunks.append, None)
        self.on_chunk_complete = self._open_chunks.clear
        #: Whether the answer comes in chunks, and the parser has the last one to its end, and nothing of the next.
        self._chunked = self._aligned = False
        self._parser = httptools.HttpResponseParser(self)
        self._held = self._last = b""
        self.headers: Headers = []
        self.head_done = False
        self._answers = self._status = self._quiet = 0
        self._keep = self._whole = self._until_close = self._breathes = False
        #: How its last answer began.
        self._known: KnownAnswer | None = None

    # What the event loop calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.drop()  # bytes that nobody asked for
            return
        size = len(data)
        upstream = self._upstream
        upstream.bytes_in += size
        if self._aligned and data.endswith(_EVENT_END) and (take := exchange.at_chunk) is not None:
            start = data.find(b"\n", 0, _SIZE_LINE) + 1
            # One whole chunk, written as we would: the parser has nothing to add, and begins with the next one.
            if start and data.startswith(b"%x\r\n" % (size - start - 2)):
                self._quiet = 0
                self._last = data
                if not exchange.paused:
                    self.due = upstream.clock() + exchange.timeouts.between
                take(data, start)
                return
        if size >= FULL_READ and not self._breathes:
            self._breathe()
        if not self.head_done:
            known = self._known
            if known is not None and exchange.at_once is not None and data.startswith(known.before):
                start = known.size
                end = data.find(b"\r", start, start + DIGITS)
                at = end + known.rest
                if (
                    data.startswith(known.after, end)
                    and (length := data[start:end]) == b"%d" % (size - at)
                    and not self._held
                    and not self._quiet
                ):
                    self._at_once(exchange, known, length, data[at:])
                    return
            end = data.find(_HEAD_END)
            if end > 0 and data[9:10] != b"1" and not self._held and end < upstream.limits.answer_head_bytes:
                self._final(exchange, data, end + 4)
            else:
                self._head(exchange, data)
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("sent something that is not HTTP/1.1")
            return
        self._aligned = self._chunked and not self._open_chunks and data.endswith(b"\r\n")
        if not exchange.paused:
            self.due = upstream.clock() + exchange.timeouts.between
        pieces = self._pieces
        if pieces and not self._whole and self._answers == 1:
            # What _body would do in the midst of an answer, where nearly every piece of a stream is.
            self._quiet = 0
            self._last = data
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            exchange.sink.on_data(body, data)
            return
        self._body(exchange, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._breathes = False
        exchange = self.exchange
        if exchange is None:
            self._upstream.forget(self)
        elif not self.head_done:
            silent = not self._held and not self._quiet
            self._release()
            self._upstream.died(exchange, self, silent=silent)
        elif self._until_close and error is None:
            self._release()
            exchange.whole()
        else:
            self._fail("ended the connection in the middle of its answer")

    # What the parser calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._answers += 1

    def on_headers_complete(self) -> None:
        if self._answers == 1:
            self.head_done = True
            self._status = self._parser.get_status_code()
            self._keep = self._parser.should_keep_alive()  # holds inside this callback only

    def on_message_complete(self) -> None:
        self._whole = True

    # What the upstream calls ----------------------------------------------------------------------------

    def send(self, exchange: Exchange, now: float) -> None:
        """Send the request of ``exchange``; its answer goes there."""
        self.exchange = exchange
        exchange.connection = self
        self._upstream.active.add(self)
        self.sent_at = now
        self.due = now + exchange.timeouts.first_byte
        body = exchange.body
        if not body:
            self._transport.write(exchange.head)
        elif len(body) <= 65536:
            self._transport.write(exchange.head + body)
        else:
            self._transport.writelines((exchange.head, body))

    def send_again(self, exchange: Exchange, now: float, idle_seconds: float) -> bool:
        """Do the same on a connection that was used before, if the other side has neither closed it nor said anything.

        That is, as far as the system knows: the event loop may not have come to hear of it yet, and what is sent to the
        dead cannot be told from what killed them.
        """
        transport = self._transport
        if transport.is_closing():
            return False
        idle = now - self.idle_since
        if idle >= _DOUBT and (
            idle >= idle_seconds or _readable(transport.get_extra_info("socket").fileno())
        ):
            return False
        self.reused = True
        self.send(exchange, now)
        return True

    def pause(self) -> None:
        """Let the engine wait."""
        self.due = math.inf
        self._transport.pause_reading()

    def resume(self) -> None:
        """Take what the engine has to say again."""
        exchange = self.exchange
        if exchange is not None:
            self.due = self._upstream.clock() + exchange.timeouts.between
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close it at once."""
        self._upstream.forget(self)
        self._transport.abort()

    def give_up(self) -> None:
        """Nobody waits for the answer any more; the engine learns it from the end of the connection."""
        self._release()
        self._transport.abort()

    def time_out(self) -> None:
        """The engine has taken too long."""
        self._fail(
            "did not answer in time" if not self.head_done else "fell silent in its answer", timed_out=True
        )

    # Answers --------------------------------------------------------------------------------------------

    def _breathe(self) -> None:
        """Read no more until others had their turn."""
        soon = self._upstream.soon
        if soon is not None:
            self._breathes = True
            self._transport.pause_reading()
            soon(self._breathed)

    def _breathed(self) -> None:
        if self._breathes:
            self._breathes = False
            if self.exchange is None or not self.exchange.paused:
                self._transport.resume_reading()

    def _head(self, exchange: Exchange, data: bytes) -> None:
        if self._held:
            data = self._held + data
        limit = self._upstream.limits.answer_head_bytes
        while True:
            end = data.find(_HEAD_END)
            if end > limit or (end < 0 and len(data) > limit):
                self._fail("sent an endless head")
                return
            if end < 0:
                # What can become no head any more need not be waited for.
                if b"\n\n" in data or not data.startswith(_BEGIN[: len(data)]):
                    self._fail("sent something that is not HTTP/1.1")
                else:
                    self._held = data
                return
            if not _INTERIM.match(data):
                break
            if not _INTERIM_HEAD.fullmatch(data, 0, end + 4):
                self._fail("sent something that is not HTTP/1.1")
                return
            if data[9:12] == b"101":
                self._fail("changed the protocol without being asked")
                return
            # An interim answer is for nobody; what has been dropped counts, as an engine could send them for ever.
            self._quiet += end + 4
            if self._quiet > limit:
                self._fail("sent interim answers without end")
                return
            data = data[end + 4 :]
            if not data:
                self._held = b""
                return
        self._final(exchange, data, end + 4)

    def _final(self, exchange: Exchange, data: bytes, end: int) -> None:
        """Take the head that ends at ``end``, and what follows it."""
        self._held = b""
        self._quiet = 0
        fed = data[:end] if exchange.head_only else data
        try:
            self._parser.feed_data(fed)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.head_done = False
            self._fail("sent something that is not HTTP/1.1")
            return
        head = data[:end]
        wrong = self._judge(head)
        if wrong:
            self.head_done = False
            self._fail(wrong)
            return
        raw = data[end:]
        if exchange.head_only:
            self._whole = True
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body
        if self._answers != 1 or (raw and (exchange.head_only or self._excess(raw))):
            self.head_done = False
            self._fail("sent more than its answer")
            return
        if not self._whole:
            self._aligned = self._chunked and not self._open_chunks and data.endswith(b"\r\n")
            self.due = self._upstream.clock() + exchange.timeouts.between
        elif self._keep and exchange.at_once is not None and self._status not in _BODILESS:
            self._known = self._upstream.known.learn(head, self._status, self.headers)
        exchange.sink.on_head(self._status, self.headers, head)
        if self.exchange is exchange:
            self._pass(exchange, raw)

    def _at_once(self, exchange: Exchange, known: KnownAnswer, length: bytes, body: bytes) -> None:
        """Take a whole answer whose head is one that was found valid before: the parser has nothing to add."""
        upstream, transport = self._upstream, self._transport
        upstream.active.discard(self)
        self.exchange = exchange.connection = None
        if transport.get_write_buffer_size():
            self.due = math.inf
            transport.abort()  # it has answered before it heard all
        else:
            if exchange.paused or self._breathes:
                self._breathes = False
                transport.resume_reading()
            upstream.put_back(self)
        take = exchange.at_once
        exchange.over()
        assert take is not None
        take(known, length, body)

    def _judge(self, head: bytes) -> str:
        """Return what is wrong with the head; nothing when it can be passed on."""
        if not head.startswith(_BEGIN) or not self.head_done or not 200 <= self._status <= 599:
            return "did not answer with a status from 200 to 599"
        version = head[5:8]
        if version not in _VERSIONS:
            return "does not speak HTTP/1.1"
        # Without on_header the parser collects neither fields nor trailers, and its rules hold all the same.
        self.headers = headers = self._upstream.fields.parse(head)
        if len(headers) > self._upstream.limits.answer_headers:
            return "sent too many headers"
        framed = self._status in _BODILESS
        self._chunked = False
        for name, value in headers:
            if name == b"content-length":
                framed = True
            elif name == b"transfer-encoding":
                framed = True
                if version == b"1.0" or value.lower() != b"chunked":
                    return "used a transfer coding that is not understood"
                self._chunked = True
            elif name == b"content-type" and value.startswith(_STREAM):
                self._keep = False
        self._until_close = not framed
        return ""

    def _body(self, exchange: Exchange, raw: bytes) -> None:
        if self._excess(raw):
            self._fail("sent more than its answer")
        else:
            self._pass(exchange, raw)

    def _excess(self, raw: bytes) -> bool:
        """Tell whether ``raw`` reaches beyond the end of the answer, or says nothing for too long."""
        if self._answers != 1:
            return True
        if not self._whole:
            if self._pieces:
                self._quiet = 0
                self._last = raw
                return False
            # Extensions of chunks and trailers without end are no answer.
            self._quiet += len(raw)
            self._last = self._last[-8:] + raw if len(raw) < 8 else raw
            return self._quiet > self._upstream.limits.answer_quiet_bytes
        pieces = self._pieces
        if (len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))) == len(raw):
            return False
        # The parser forgives line ends after an answer. In chunks it ends with exactly one empty line.
        tail = (self._last[-8:] + raw)[-6:]
        return not tail.endswith(_HEAD_END) or tail == b"\r\n\r\n\r\n" or not self._chunked

    def _pass(self, exchange: Exchange, raw: bytes) -> None:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        exchange.sink.on_data(body, raw)
        if self.exchange is not exchange:
            return
        if self._whole:
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        transport = self._transport
        keep = self._keep and not transport.is_closing() and not transport.get_write_buffer_size()
        upstream = self._upstream
        upstream.active.discard(self)
        self.exchange = exchange.connection = None
        if keep:
            if exchange.paused or self._breathes:
                self._breathes = False
                transport.resume_reading()
            self._begin_anew()
            upstream.put_back(self)
        else:
            self.due = math.inf
            transport.abort()
        exchange.whole()

    def _begin_anew(self) -> None:
        """Forget the answer that is over."""
        self.headers = []
        self.head_done = self._whole = self._until_close = self._chunked = self._aligned = False
        self._answers = self._quiet = 0
        self._held = self._last = b""

    def _release(self) -> None:
        self._upstream.active.discard(self)
        if self.exchange is not None:
            self.exchange.connection = None
            self.exchange = None
        self.due = math.inf
        self._aligned = False
        self._pieces.clear()

    def _fail(self, message: str, *, timed_out: bool = False) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        begun = self.head_done
        self.give_up()
        exchange.broken(begun, message, timed_out=timed_out)


def _readable(fd: int) -> bool:
    if sys.platform == "win32":
        return bool(select.select([fd], [], [], 0)[0])
    # Unlike select it takes descriptors of any number.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
