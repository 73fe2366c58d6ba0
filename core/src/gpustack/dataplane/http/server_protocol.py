"""One client's connection: whose turn it is, how fast it takes its answers, and when it ends."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, cast

from gpustack.dataplane.http.limits import FULL_READ
from gpustack.dataplane.http.reader import RequestReader
from gpustack.dataplane.http.reply import Reply
from gpustack.dataplane.http.request import Request

if TYPE_CHECKING:
    from gpustack.dataplane.http.server import HttpServer

_log = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ServerProtocol(asyncio.Protocol):
    """Hands over one request at a time and writes the answers in the order of the requests.

    Nothing is parsed while a request is worked on, nor while the client does not take what it got: what arrives
    then is held, up to a limit, and after that the client has to wait.
    """

    __slots__ = (
        "_breathes",
        "_closing",
        "_current",
        "_held",
        "_held_size",
        "_pumping",
        "_reading_paused",
        "_transport",
        "_unsent",
        "due",
        "keeps",
        "reader",
        "send",
        "server",
        "write_paused",
    )

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._current: Reply | None = None
        self._held: list[bytes] = []
        self._held_size = self._unsent = 0
        self._closing = self._pumping = self._reading_paused = self._breathes = False
        #: When the sweep has to look here, beside what the reader waits for.
        self.due = math.inf
        #: Whether the connection is used on after the answer that is being written.
        self.keeps = True
        self.write_paused = False

    # What the event loop calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.send = self._transport.write
        server = self.server
        peer = transport.get_extra_info("peername")
        tls = transport.get_extra_info("sslcontext") is not None
        self.reader = RequestReader(server, peer[0] if isinstance(peer, tuple) else "", tls=tls)
        self.due = server.clock() + server.limits.keep_alive_seconds
        if not server.add(self):
            self._turn_away()

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self.server.bytes_in += size
        reader = self.reader
        if size >= FULL_READ and not self._breathes:
            self._breathe()
        if self._closing or reader.deaf:
            return  # until the client has understood
        if self._current is None and not self.write_paused and not reader.ready and not self._held:
            reader.feed(data)
            if reader.ready:
                self._start(reader.ready.pop(0))
                if self._current is None:
                    self._pump()
            elif reader.owes_continue:
                self._continue()
            return
        self._held.append(data)
        self._held_size += size
        if self._held_size > self.server.limits.held_bytes and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        # Who will not ask again does not wait for an answer either, and an engine has to hear of it at once.
        if self._current is not None:
            self._transport.abort()
        else:
            self.due = self.server.clock() + self.server.limits.write_seconds

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._breathes = False
        self.due = math.inf
        self.server.remove(self)
        self._held.clear()
        self.reader.close()
        current = self._let_go()
        if current is not None:
            self.server.clients_left += 1
            current.lost()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent = self._transport.get_write_buffer_size()
        self.due = self.server.clock() + self.server.limits.write_seconds

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._closing:
            return
        if self._current is not None:
            self.due = math.inf
            self._current.drained()
        else:
            self._rest()
            self._pump()

    # What a reply calls ---------------------------------------------------------------------------------

    def last(self) -> None:
        """The answer that is being written is the last one."""
        self.keeps = False

    def finished(self) -> None:
        """The current answer has ended: whose turn is it now?"""
        current, reader, server = self._current, self.reader, self.server
        self._current = None
        if current is not None:
            server.bytes_out += current.sent
            if current.request.size:
                server.bodies.give_back(current.request)
        if not self.keeps:
            self._close()
            return
        if not self.write_paused:
            self.due = server.clock() + server.limits.keep_alive_seconds
        if reader.begun:
            reader.restart()
        if self._held or reader.ready or reader.owes_continue:
            self._pump()

    def break_off(self, *, hard: bool) -> None:
        """End the connection in the middle of an answer."""
        self._let_go()
        if hard:
            self._transport.abort()
        else:
            self._close()

    # What the server calls ------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is asked or answered."""
        return self._current is None and not self.reader.ready and not self.reader.begun and not self._held

    def close(self) -> None:
        """End the connection once what has been written is sent."""
        self._close()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Something is due here."""
        if self._closing or self.write_paused:
            if self.due <= now:
                self._check_pace(now)
        elif self._current is not None:
            return  # ours to end
        elif self.reader.begun:
            if self.reader.due <= now:
                self.server.timeouts += 1
                self.reader.time_out()
                self._pump()
        elif self.due <= now:
            self._close()

    def _check_pace(self, now: float) -> None:
        """End a connection whose client has taken nothing since the last look."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            self.due = now + self.server.limits.write_seconds
        else:
            if unsent:
                self.server.timeouts += 1
            self._transport.abort()

    def _let_go(self) -> Reply | None:
        current, self._current = self._current, None
        if current is not None:
            self.server.bytes_out += current.sent
            if current.request.size:
                self.reader.give_back(current.request)
            if self.reader.begun:
                self.reader.restart()
        return current

    # Turns ----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand over what is ready, one after the other, as long as each is answered at once."""
        if self._pumping:
            return
        self._pumping = True
        reader = self.reader
        try:
            while self._current is None and not self.write_paused and not self._closing:
                if reader.ready:
                    self._start(reader.ready.pop(0))
                elif self._held:
                    data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
                    self._held.clear()
                    self._held_size = 0
                    reader.feed(data)
                else:
                    break
        finally:
            self._pumping = False
        if self._reading_paused and not self._held and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()
        if reader.owes_continue and self._current is None:
            self._continue()

    def _start(self, request: Request) -> None:
        self.keeps = request.keep_alive
        self._current = reply = Reply(self, request)
        self.due = math.inf
        self.server.requests += 1
        if request.refusal is not None:
            reply.refuse(request.refusal)
            return
        try:
            self.server.service.handle(request, reply)
        except Exception:  # noqa: BLE001  (whatever it is, this client gets an answer and the others are served)
            _log.exception("a request failed")
            self._failed(reply)

    def _failed(self, reply: Reply) -> None:
        if reply.status:
            reply.abort()
        else:
            refusal = self.server.refusal(
                reply.request, 500, "the server failed to answer; its log says why", "internal_error"
            )
            reply.refuse(refusal)

    def _rest(self) -> None:
        """Wait for the next request, but not for ever, nor for who still has to take the last answer."""
        if not self.write_paused:
            self.due = self.server.clock() + self.server.limits.keep_alive_seconds

    def _breathe(self) -> None:
        """Read no more until others had their turn."""
        soon = self.server.soon
        if soon is not None:
            self._breathes = True
            self._transport.pause_reading()
            soon(self._breathed)

    def _breathed(self) -> None:
        if self._breathes:
            self._breathes = False
            if not self._reading_paused:
                self._transport.resume_reading()

    def _continue(self) -> None:
        self.reader.owes_continue = False
        self.send(_CONTINUE)

    def _turn_away(self) -> None:
        text = "this server has too many open connections; try again later"
        refusal = self.server.refusal(None, 503, text, "too_many_connections")
        request = Request("", tls=False)
        request.refusal = refusal
        self._start(request)

    # Ending ---------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """End the connection. A client that is still sending gets the time to read why."""
        if self._closing:
            return
        self._closing = True
        self._held.clear()
        limits = self.server.limits
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self.reader.deaf:
            # Closing now would make the system throw away the answer with what was not read.
            self.due = self.server.clock() + limits.linger_seconds
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self.due = self.server.clock() + limits.write_seconds
            self._transport.close()
