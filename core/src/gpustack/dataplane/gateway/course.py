"""The course of one request for a model: what there is to know of it, and the ways in which it ends.

How it comes to its answer is in :mod:`~gpustack.dataplane.gateway.inference`. :meth:`Course._finish` is where all ways end,
exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from gpustack.dataplane import errors
from gpustack.dataplane.admission import Ticket
from gpustack.dataplane.choosing import Hints, Lease, Outcome, prefix
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway.answers import error_body, error_event
from gpustack.dataplane.gateway.books import LEFT
from gpustack.dataplane.gateway.operations import Operation
from gpustack.dataplane.gateway.ways import Way
from gpustack.dataplane.http import Exchange, Failure, Headers, Reply, Request
from gpustack.dataplane.metering import prompts
from gpustack.dataplane.metering.answers import AnswerReader
from gpustack.dataplane.metering.open_streams import OpenStream
from gpustack.dataplane.metering.requests import Asked
from gpustack.dataplane.metering.streams import StreamReader
from gpustack.dataplane.metering.usage import Usage
from gpustack.plugin.routing import Principal, Route

if TYPE_CHECKING:
    from gpustack.dataplane.gateway.service import Gateway

log = logging.getLogger(__name__)

_UNBUFFERED = b"x-accel-buffering: no\r\n"
#: Nothing of it is ever changed.
_NOTHING = Usage()


class Course(msgspec.Struct, eq=False):
    """See the module. What ends up in the books is public; nothing of it changes after the end.

    A Struct, as making one costs a tenth of an ``__init__`` for so many fields, and is done for each request.
    """

    gateway: Gateway
    request: Request
    reply: Reply
    operation: Operation
    principal: Principal
    request_id: bytes
    _id_line: bytes
    _fields: dict[bytes, bytes]
    began: float
    _asked: Asked | None = None
    #: Of the route that was asked for, where there is one that this client may ask.
    way: Way | None = None
    _route: Route | None = None
    _ticket: Ticket | None = None
    _lease: Lease | None = None
    _exchange: Exchange | None = None
    reader: AnswerReader | None = None
    _hints: Hints | None = None
    _comfort: asyncio.TimerHandle | None = None
    _tried: tuple[int, ...] = ()
    _trouble: ApiError | None = None
    #: The body as it is sent, for which served name, and whether usage had to be asked for.
    _body: bytes = b""
    _served: str | None = None
    _forced: bool = False
    #: Bytes of text that the body weighs as much as.
    _size: int = 0
    #: What an engine says instead of an answer; None while it answers.
    _content: list[bytes] | None = None
    _status: int = 0
    _said: bytes = b""
    _held_open: bool = False
    _fell_back: bool = False
    _over: bool = False
    _streaming: bool = False
    route_name: str = ""
    model: str = ""
    trouble: str = ""
    refused_for: str = ""
    instance_id: int | None = None
    asked_engine: bool = False
    retries: int = 0
    status: int = 0
    queued: float = 0.0
    duration: float = 0.0
    usage: Usage = _NOTHING
    #: What is left of it if this process is killed; streams only.
    kept: OpenStream | None = None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the request to the first piece of a stream; None for what is none."""
        reader = self.reader
        if reader is None or reader.first_at is None or not reader.chunks:
            return None
        return reader.first_at - self.began

    @property
    def between_tokens(self) -> float | None:
        """Mean seconds between two pieces of a stream; None with less than two."""
        reader = self.reader
        if reader is None or reader.chunks < 2 or reader.first_at is None or reader.last_at is None:
            return None
        return (reader.last_at - reader.first_at) / (reader.chunks - 1)

    # The end --------------------------------------------------------------------------------------------

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error of ours, in the midst of a stream as its last event."""
        self._still_there()
        self._let_go(Outcome.CLIENT_LEFT)  # what is refused by us tells nothing of the instance
        self.trouble = error.message
        reply = self.reply
        if self._held_open:
            reply.write(error_event(error, self.operation))
            reply.end()
        else:
            headers = [*error.headers(), *self._own_headers()]
            reply.answer(error.status, headers, error_body(error, self.operation))
        self._finish(error.status)

    def _break_off(self, failure: Failure | None) -> None:
        """End an answer that is not whole, so that nobody takes it for all."""
        route = self._route
        assert route is not None
        why = failure.message if failure is not None else "ended early"
        log.warning("model %s: its engine (instance %s) %s", route.name, self.instance_id, why)
        error = errors.engine_failed(route.name, why)
        self.trouble = error.message
        if self._held_open or not self.reply.raw:
            # The end of an event that was cut short: what follows is one of its own.
            self.reply.write(b"\n\n" + error_event(error, self.operation))
            self.reply.end()
        else:
            self.reply.abort()

    def _broke(self, error: Exception) -> None:
        """Something of our own failed: that costs this request, and nothing is kept of it."""
        number = self.request_id.decode("latin-1")
        log.error("request %s for model %s failed", number, self.route_name, exc_info=error)
        if self._over:
            return
        if self._exchange is not None:
            self._exchange.cancel()
        self._let_go(Outcome.CLIENT_LEFT)
        if self.reply.status and not self._held_open:
            self.reply.abort()
            self._finish(500)
        else:
            self._refuse(errors.internal(number))

    def revoked(self) -> None:
        """The key is no longer good, and what it has begun is to end."""
        if self._over:
            return
        if self._exchange is not None:
            self._exchange.cancel()
        self._let_go(Outcome.CLIENT_LEFT)
        error = errors.invalid_key()
        if not self.reply.status or self._held_open:
            self._refuse(error)
            return
        self.trouble = error.message
        if self.reply.raw:
            self.reply.abort()
        else:
            self.reply.write(b"\n\n" + error_event(error, self.operation))
            self.reply.end()
        self._finish(401)

    def _left(self) -> None:
        """The client is gone."""
        if self._over:
            return
        if self._exchange is not None:
            self.asked_engine = True
            self._exchange.cancel()
        self._let_go(Outcome.CLIENT_LEFT)
        if self._ticket is not None:
            self._ticket.cancel()
        self._finish(LEFT)

    def _let_go(self, outcome: Outcome) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            completion = 0
            if self.reader is not None and outcome is Outcome.OK:
                self.usage = self.reader.usage
                completion = self.usage.completion
            lease.done(outcome, completion)

    def _finish(self, status: int) -> None:
        if self._over:
            return
        self._over = True
        self.gateway.open.discard(self)
        if self._comfort is not None:
            self._still_there()
        gateway = self.gateway
        self.status = status
        self.duration = gateway.clock() - self.began
        if self.reader is not None:
            if type(self.reader) is StreamReader:
                self.reader.tell_gaps()
            # Usually an engine's last word has been read already.
            if self.usage is _NOTHING:
                self.usage = self.reader.usage
        elif status == LEFT and self.asked_engine and self.operation.metered and not self.operation.form:
            # The engine has read the prompt, as far as anybody can tell.
            self.usage = Usage(prompt=prefix.tokens(self._prompt_bytes()), estimated=True)
        if self._ticket is not None:
            self._ticket.done(self.usage.prompt + self.usage.completion)
        gateway.books.close(self)
        self._exchange = self._ticket = None

    def _prompt_bytes(self) -> int:
        """Return the bytes of text that the engine reads, for the case that it does not tell."""
        return 0 if self.operation.form else prompts.text_bytes(self.request.body, self._size)

    def _own_headers(self) -> Headers:
        headers = [(b"x-request-id", self.request_id), *self.gateway.sharing(self.request)]
        if self.queued >= 0.001:
            headers.append((b"x-queue-time", b"%.3f" % self.queued))
        return headers

    def _own_lines(self, streaming: bool) -> bytes:
        if self.queued < 0.001 and self.gateway.cors is None:
            return self._id_line + _UNBUFFERED if streaming else self._id_line
        lines = b"".join([b"%b: %b\r\n" % header for header in self._own_headers()])
        return lines + _UNBUFFERED if streaming else lines

    def _still_there(self) -> None:
        if self._comfort is not None:
            self._comfort.cancel()
            self._comfort = None
