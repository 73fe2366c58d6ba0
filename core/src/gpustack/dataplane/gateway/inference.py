"""One request for a model, from its body to the end of its answer.

A small machine of callbacks: its turn is granted, an instance is chosen, the answer comes piece by piece, either side may
leave at any time. Where each of these ways ends is in :mod:`~gpustack.dataplane.gateway.course`.
"""

from __future__ import annotations

import logging

from gpustack.dataplane import errors
from gpustack.dataplane.admission import Refusal, Ticket
from gpustack.dataplane.choosing import Lease, Outcome, prefix
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.gateway.bodies import body_for
from gpustack.dataplane.gateway.course import Course
from gpustack.dataplane.gateway.failures import (
    is_plain,
    leads_to_fallback,
    obstacle,
    outcome_of,
    told_by_door,
    trouble_of,
)
from gpustack.dataplane.gateway.hints import hints_of
from gpustack.dataplane.gateway.several import pick_of_several
from gpustack.dataplane.gateway.sizes import SMALL, size_of
from gpustack.dataplane.hops import DOOR_SAYS
from gpustack.dataplane.http import Failure, Headers, KnownAnswer, request_head
from gpustack.dataplane.metering import forms, requests
from gpustack.dataplane.metering.answers import answer_reader, read_document
from gpustack.dataplane.metering.requests import Asked
from gpustack.dataplane.metering.streams import StreamReader
from gpustack.plugin.routing import Route, Target

log = logging.getLogger(__name__)

#: Instances that one request is sent to at most.
_TRIES = 3
#: Bytes of a large body that are looked at before others have their turn: half a millisecond or so.
_STEP = 128 << 10
#: Bytes of an engine's error that anybody reads.
_ERROR = 64 << 10
_STREAM = b"text/event-stream"
_COMFORT = b": waiting\n\n"


class Inference(Course, eq=False):
    """See the module."""

    # The body -------------------------------------------------------------------------------------------

    def begin(self, model: str = "") -> None:
        """Go on with the body, which is complete; ``model`` is for requests that name theirs elsewhere."""
        self.reply.on_gone(self._left)
        self.gateway.open.add(self)
        if model:
            self._found(Asked(model, (0, 0)))
            return
        body = self.request.body
        try:
            if self.operation.form:
                asked = forms.find(body, self._boundary())
            elif len(body) > requests.AT_ONCE:
                self._read_on(requests.BodyReader(), 0)
                return
            else:
                asked = requests.read(body)
        except ApiError as error:
            self._refuse(error)
        else:
            self._found(asked)

    def _boundary(self) -> bytes:
        boundary = forms.boundary_of((self.request.header(b"content-type") or b"").decode("latin-1"))
        if boundary is None:
            raise ApiError(
                400, f"{self.operation.name} takes a form (multipart/form-data)", code="invalid_request"
            )
        return boundary

    def _read_on(self, reader: requests.BodyReader, start: int) -> None:
        """Look at the next part of a large body, and let others have their turn."""
        if self._over:
            return
        body = self.request.body
        try:
            if start < len(body):
                reader.feed(body[start : start + _STEP])
                self.gateway.call_soon(self._read_on, reader, start + _STEP)
                return
            asked = reader.end()
        except ApiError as error:
            self._refuse(error)
        else:
            self._found(asked)

    # The turn -------------------------------------------------------------------------------------------

    def _found(self, asked: Asked) -> None:
        """Go on with what is asked for: the usual way from here to the engine, or to where something else is needed."""
        self._asked = asked
        gateway, operation, body = self.gateway, self.operation, self.request.body
        model, kinds = asked.model, operation.kinds
        # By the table of this moment: a slow client takes longer to ask than an instance needs to go.
        way = gateway.way(model)
        allowed = self.principal.allowed
        if way is None or not (allowed is None or model in allowed):
            self._refuse(errors.unknown_model(model))
            return
        self.way = way
        self._route = route = way.route
        self.route_name = route.name
        if kinds and route.categories and kinds.isdisjoint(route.categories):
            self._refuse(errors.wrong_kind(model, route.categories, operation.name))
            return
        size = len(body)
        if size > SMALL or operation.form:
            size = size_of(body, form=operation.form)
        self._size = size
        self._ticket = ticket = gateway.admission.enter(self.principal, way.room, prefix.tokens(size))
        if ticket is None:
            self._enter(route)
            return
        gateway.budget.request()
        try:
            hints = hints_of(self.request, self._fields, operation, way.salt, size)
            hints.max_tokens = asked.max_tokens
            self._hints = hints
            if ticket.room.several:
                self._attempt()
            elif (lease := gateway.chooser.pick_of(way.known, hints)) is None:
                self._nobody(route)
            else:
                self._send(route, lease)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def _enter(self, route: Route) -> None:
        """Ask for a turn at ``route``, which may not come at once."""
        self._route = route
        admission = self.gateway.admission
        tokens = prefix.tokens(self._size)
        ticket = admission.ask(self.principal, route, tokens, self._granted, self._turned_away, self._hold)
        # It may be over by now, or another route's turn.
        if ticket is not self._ticket or not ticket.waits or self._comfort is not None:
            return
        if self._asked is not None and self._asked.stream:
            self._comfort = self.gateway.call_later(self.gateway.hold_seconds, self._hold_open)

    def _hold(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def _granted(self, waited: float) -> None:
        self.queued += waited
        if self._over:
            return
        if self._comfort is not None:
            self._still_there()
        # Whoever waited may find another table than the one it came with.
        if waited and self._route is not None:
            self._route = self.gateway.table.routes.get(self._route.name, self._route)
        self.gateway.budget.request()
        self._attempt()

    def _turned_away(self, refusal: Refusal) -> None:
        if self._over:
            return
        if refusal.status == 503:
            if self._fall_back():
                return
            if (trouble := self._trouble) is not None and trouble.status != 503:
                self._refuse(trouble)  # an engine's own error tells more than why nobody stands in
                return
        self.refused_for = refusal.reason
        self._refuse(refusal.error())

    def _hold_open(self) -> None:
        """Begin the answer of a stream whose turn has not come, so that nobody on the way gives it up."""
        if self._over or self.reply.gone:
            return
        if not self._held_open:
            self._held_open = True
            headers = [(b"content-type", _STREAM), (b"cache-control", b"no-cache"), *self._own_headers()]
            self.reply.start(200, headers)
        self.reply.write(_COMFORT)
        self._comfort = self.gateway.call_later(self.gateway.hold_seconds, self._hold_open)

    # An instance ----------------------------------------------------------------------------------------

    def _attempt(self) -> None:
        """Send the request to the best instance that has not had it."""
        try:
            route = self._route
            assert route is not None
            hints = self._hints
            if hints is None:
                salt = prefix.salt(route.name)
                self._hints = hints = hints_of(self.request, self._fields, self.operation, salt, self._size)
                hints.max_tokens = self._asked.max_tokens if self._asked is not None else 0
            ticket = self._ticket
            assert ticket is not None
            if ticket.room.several:
                lease = pick_of_several(self.gateway.chooser, route, hints, self._tried, ticket)
            else:
                lease = self.gateway.chooser.pick(route, hints, self._tried)
            if lease is None:
                self._nobody(route)
            else:
                self._send(route, lease)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def _send(self, route: Route, lease: Lease) -> None:
        gateway, request = self.gateway, self.request
        self._lease = lease
        target = lease.target
        self.instance_id = target.instance_id
        self.model = target.model or route.name
        # Most bodies are sent as they came.
        asked = self._asked
        as_it_came = not target.served_name and asked is not None and not asked.stream
        body = request.body if as_it_came else self._body_for(target)
        try:
            first = gateway.first_lines(target, self.operation, request)
        except ValueError:
            self._refuse(ApiError(400, "the path or its query cannot be sent on", code="invalid_request"))
            return
        head = request_head(first, request, len(body), extra=self._id_line)
        at_once = None if request.head_only else self.on_whole
        self._exchange = gateway.upstream.request(
            (target.host, target.port), head, body, self, route.timeouts, at_once
        )

    def _body_for(self, target: Target) -> bytes:
        """Return the body as this target is to have it: its own name of the model, and usage asked for."""
        if self._served != target.served_name:
            assert self._asked is not None
            body = body_for(self.request.body, self._asked, self.operation, target.served_name)
            self._served = target.served_name
            self._body, self._forced = body
        return self._body

    def _nobody(self, route: Route) -> None:
        """No instance is left to ask."""
        if self._fall_back():
            return
        self._refuse(self._trouble or errors.not_running(route.name, obstacle(route)))

    def _fall_back(self) -> bool:
        """Ask the route that stands in for this one, once; tell whether there is one."""
        route = self._route
        other = (
            self.gateway.table.routes.get(route.fallback) if route is not None and route.fallback else None
        )
        if other is None or self._fell_back:
            return False
        self._fell_back = True
        if self._ticket is not None:
            self._ticket.move()
            self._ticket = None
        self._tried = ()
        self._hints = None
        self._enter(other)
        return True

    def _fall_back_from(self, status: int, error: ApiError) -> bool:
        """Ask whom the route names for an engine's ``status``; tell whether there is anybody. ``error`` is told otherwise."""
        route = self._route
        assert route is not None
        if not leads_to_fallback(route, status):
            return False
        self._trouble = error
        self._exchange = self.reader = self._content = None
        self._said = b""
        if self._fall_back():
            return True
        counted = tuple(each.instance_id for each in route.targets if each.weight)
        if self._fell_back or len(counted) == len(route.targets):
            return False
        self._fell_back = True
        self._tried = (*self._tried, *counted)
        self._attempt()
        return True

    # The answer (called by the exchange) ----------------------------------------------------------------

    def on_whole(self, known: KnownAnswer, length: bytes, body: bytes) -> None:
        """The whole answer at once: the usual case where nothing is streamed."""
        try:
            if known.note is None:
                known.note = is_plain(known)
            if not known.note or self._held_open:
                self._head(known.status, known.headers(length))
                self._data(body, body)
                self._end(True)
                return
            self.asked_engine = True
            lease, self._lease = self._lease, None
            usage = read_document(body, prompt_bytes=0, estimate=self.operation.metered)
            if usage.estimated:
                size = self._prompt_bytes()
                usage = read_document(body, prompt_bytes=size, estimate=self.operation.metered)
            self.usage = usage
            if lease is not None:
                lease.done(Outcome.OK, usage.completion)
            usual = self.queued < 0.001 and self.gateway.cors is None
            self.reply.pass_whole(
                known, length, body, extra=self._id_line if usual else self._own_lines(False)
            )
            self._finish(known.status)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def on_head(self, status: int, headers: Headers, raw_head: bytes) -> None:
        """The engine, or the door before it, begins to answer."""
        del raw_head
        try:
            self._head(status, headers)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def on_data(self, body: bytes, raw: bytes) -> None:
        """A piece of the answer."""
        try:
            self._data(body, raw)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def on_chunk(self, chunk: bytes, start: int) -> None:
        """A piece of a stream that is a chunk of its own, whose data begin at ``start``: as a rule it goes on as it is."""
        try:
            reader, kept = self.reader, self.kept
            assert type(reader) is StreamReader
            now = self.gateway.clock()
            if not reader.passes(chunk, start, now):
                self._data(chunk[start:-2], chunk)
                return
            if kept is not None:
                kept.note(reader.chunks, now)
            if self.reply.pass_chunk(chunk, len(chunk) - start - 2):
                self._wait()
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def on_end(self, clean: bool) -> None:
        """The answer has ended."""
        try:
            self._end(clean)
        except Exception as error:  # noqa: BLE001 - told there
            self._broke(error)

    def _head(self, status: int, headers: Headers) -> None:
        self.asked_engine = True
        self._status = status
        fields = dict(headers)
        content_type = fields.get(b"content-type", b"")
        encoding = fields.get(b"content-encoding", b"")
        if DOOR_SAYS in fields:
            self._said = fields[DOOR_SAYS]
        if status >= 400 or self._said:
            self._content = []
            return
        prompt = self._prompt_bytes()
        self._streaming = streaming = content_type.startswith(_STREAM)
        self.reader = answer_reader(
            content_type,
            encoding=encoding,
            status=status,
            prompt_bytes=prompt,
            forced=self._forced,
            estimate=self.operation.metered,
            clock=self.gateway.clock,
            between=self.gateway.between(self.route_name) if streaming else None,
        )
        if streaming:
            self.kept = self.gateway.books.begin(self, self.reader, prefix.tokens(prompt))
        if self._held_open:
            if not streaming:
                self._content = []  # it cannot be put into a stream that has begun
            return
        # An answer of our own framing can be ended with a word on what went wrong.
        self.reply.pass_head(status, headers, extra=self._own_lines(streaming), reframe=streaming)
        if type(self.reader) is StreamReader and self.reply.in_chunks and self._exchange is not None:
            self._exchange.at_chunk = self.on_chunk

    def _data(self, body: bytes, raw: bytes) -> None:
        if self._content is not None:
            if body and sum(map(len, self._content)) < _ERROR:
                self._content.append(body)
            return
        reader, reply = self.reader, self.reply
        assert reader is not None
        if body:
            # An answer that is no stream has come to its end when it comes.
            if self._streaming and reader.first_at is None and self._lease is not None:
                self._lease.first_byte()
            body = reader.feed(body)
            if self.kept is not None and reader.last_at is not None:
                # Before the client has it.
                self.kept.note(reader.chunks, reader.last_at)
        if self._held_open:
            reply.write(body)
        else:
            reply.pass_data(body, raw)
        if reply.paused:
            self._wait()

    def _wait(self) -> None:
        """Let the engine wait for a slow client."""
        exchange = self._exchange
        if exchange is not None and not exchange.paused:
            exchange.pause()
            self.reply.on_drain(exchange.resume)

    def _end(self, clean: bool) -> None:
        if self._content is not None:
            self._refused_by_engine(b"".join(self._content))
            return
        reader, reply = self.reader, self.reply
        assert reader is not None
        failure = self._exchange.failure if self._exchange is not None else None
        left = reader.end()
        self._let_go(Outcome.OK if clean else outcome_of(failure))
        if left:
            reply.write(left)
        if clean:
            reply.end()
        else:
            self._break_off(failure)
        self._finish(self._status if clean else 502)

    def on_fail(self, failure: Failure) -> None:
        """There is no answer."""
        self._failed(failure)

    def _failed(self, failure: Failure) -> None:
        route = self._route
        assert route is not None
        log.warning("model %s: its engine (instance %s) %s", route.name, self.instance_id, failure.message)
        self.asked_engine = self.asked_engine or failure.started
        self._let_go(outcome_of(failure))
        self._trouble = trouble_of(failure, route)
        if not failure.started or (self.operation.repeatable and not failure.timed_out):
            self._again()
        elif not self._fall_back_from(self._trouble.status, self._trouble):
            self._refuse(self._trouble)

    def _again(self) -> None:
        """Ask another instance, if one may be asked still."""
        if self.instance_id is not None:
            self._tried = (*self._tried, self.instance_id)
        self._exchange = self.reader = self._content = None
        self._said = b""
        if len(self._tried) >= _TRIES or not self.gateway.budget.retry():
            if not self._fall_back():
                assert self._trouble is not None
                self._refuse(self._trouble)
            return
        self.retries += 1
        self._attempt()

    def _refused_by_engine(self, content: bytes) -> None:
        """An error instead of an answer: the engine's own, or the word of a door."""
        route = self._route
        assert route is not None
        if self._said:
            failure = told_by_door(self._said, content)
            self.asked_engine = failure.started
            self._failed(failure)
        elif self._status < 400:
            self._let_go(Outcome.OK)
            self._refuse(errors.engine_failed(route.name, "answered a stream with something else"))
        elif self._status == 503:
            # It took the request and did nothing with it, for want of room or of a loaded model.
            self._let_go(Outcome.SERVER_ERROR)
            message = errors.engine_message(content) or "cannot serve now"
            self._trouble = errors.not_running(route.name, f"cannot serve now: {message}")
            self._again()
        else:
            self._let_go(Outcome.SERVER_ERROR if self._status >= 500 else Outcome.OK)
            if self._status == 404 and self.operation.fixed and errors.knows_no_path(content):
                error = errors.unserved(route.name, self.operation.name)
            else:
                error = errors.of_engine(self._status, content)
            if not self._fall_back_from(self._status, error):
                self._refuse(error)
