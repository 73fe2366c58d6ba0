"""Heads that are known by their bytes: whatever comes, nobody can tell the short way from the parser's."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.gateway import Gateway, Parts
from gpustack.dataplane.http import Exchange, HttpServer, Reply, Request, Upstream
from gpustack.dataplane.http.engine import EngineConnection
from gpustack.dataplane.http.known import KnownAnswers, KnownRequests
from gpustack.dataplane.http.reader import RequestReader
from gpustack.plugin.routing import Principal, Route, RoutingTable, Target, digest

from .conftest import Clock, Transport

ADDRESS = ("127.0.0.1", 9)
KEYS = (b"sk-one", b"sk-another-one")
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
_FIRST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway:8080\r\n"
HEADS = (
    _FIRST + b"Authorization: Bearer %(key)b\r\nAccept: */*\r\nContent-Length: %(length)d\r\n\r\n",
    _FIRST + b"content-length:%(length)d\r\nAccept: */*\r\nX-API-Key: %(key)b\r\n\r\n",
)
ANSWER_HEADS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %(length)d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: %(length)d\r\nserver: e\r\ncontent-type: application/json\r\nx-more: 1\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\ncontent-length:%(length)d\r\nConnection: Keep-Alive\r\n\r\n",
)
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'
#: What is put into a message, at any place: the letters that heads are made of, and lines that change what follows.
PIECES = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"0", b"1", b"9", b"+", b"-", b"A", b"\0", b"\x80", b"\xff",
    b",", b"Bearer ", b"x" * 70, b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\nHost: other",
    b"\r\nConnection: close", b"\r\nConnection: x-more", b"\r\nExpect: 100-continue", b"\r\nX-API-Key: sk-one",
    b"\r\nCookie: gpustack_session=1", b"\r\nContent-Encoding: gzip", b"\r\nX-Request-Id: mine",
    b"\r\nX-Forwarded-For: 1.2.3.4", b"\r\n more", b"?key=1",
)  # fmt: skip


class Pages:
    """What would be written down of each request."""

    metrics = None

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def close(self, done: Any) -> None:
        self.said.append((done.status, done.usage, done.principal, done.model, done.reply.sent, done.trouble))

    def begin(self, asked: Any, reader: Any, prompt: int) -> None:
        self.said.append((asked.model, prompt))

    def note(
        self, request: Request, status: int, request_id: bytes, duration: float, *, reply: Reply | None = None
    ) -> None:
        self.said.append((status, request.method, request.path, request.body))


class NothingIsLearned(KnownRequests):
    def learn(self, head, request):
        return None


class NoAnswerIsLearned(KnownAnswers):
    def learn(self, head, status, headers):
        return None


class World:
    """A whole gateway with one client and one engine's connection, without sockets."""

    def __init__(self, *, learns: bool) -> None:
        clock = Clock()
        self.upstream = Upstream()
        self.upstream.clock = clock
        if not learns:
            self.upstream.known = NoAnswerIsLearned()
        #: Exchanges for which there was no connection.
        self.without: list[Exchange] = []
        self.upstream._connect = self.without.append  # type: ignore[method-assign]
        self.pages = Pages()
        admission = Admission(clock, None)  # type: ignore[arg-type]
        self.gateway = Gateway(
            Parts(
                upstream=self.upstream,
                chooser=Chooser(clock),
                admission=admission,
                books=self.pages,  # type: ignore[arg-type]
                clock=clock,
            )
        )
        self.gateway._ids = b"0"
        principals = {
            digest(key.decode()): Principal(user_id=at, username=str(at), key_id=at)
            for at, key in enumerate(KEYS)
        }
        target = Target(instance_id=1, host=ADDRESS[0], port=ADDRESS[1])
        self.gateway.apply(
            RoutingTable(routes={"m": Route(name="m", created=1, targets=(target,))}, principals=principals)
        )
        self.server = HttpServer(self.gateway)
        self.server.clock = clock
        self.server.date = b"today"
        if not learns:
            self.server.known = NothingIsLearned()
        self.client = Transport()
        self.protocol = self.server.protocol()
        self.protocol.connection_made(self.client)  # type: ignore[arg-type]
        self.engine = Transport()
        self.connection = EngineConnection(self.upstream, ADDRESS)
        self.connection.connection_made(self.engine)  # type: ignore[arg-type]
        self.connection.idle_since = clock.now
        self.upstream._idle[ADDRESS] = [self.connection]

    def asks(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.client.is_closing():
                self.protocol.data_received(piece)

    def answers(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.engine.is_closing():
                self.connection.data_received(piece)
        if self.engine.is_closing():
            self.connection.connection_lost(None)

    @property
    def told(self) -> tuple[Any, ...]:
        """All that anybody else can see."""
        return (
            self.client.written, self.client.closed, self.client.aborted, self.client.eof,
            self.engine.written, self.engine.aborted, self.connection in self.upstream._idle.get(ADDRESS, ()),
            self.pages.said, [(each.head, each.body) for each in self.without], self.server.buffered,
            self.server.bad_requests, len(self.upstream.active), len(self.gateway.open),
        )  # fmt: skip


def request(form: int, key: bytes, body: bytes = BODY) -> bytes:
    return HEADS[form] % {b"key": key, b"length": len(body)} + body


def answer(form: int, body: bytes = ANSWER) -> bytes:
    return ANSWER_HEADS[form] % {b"length": len(body)} + body


@st.composite
def changed(draw: st.DrawFn, message: bytes) -> list[bytes]:
    """A message with some changes, in some pieces."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(message)))
        gone = draw(st.sampled_from((0, 0, 0, 1, 2, 7)))
        message = message[:at] + draw(st.sampled_from((b"", *PIECES))) + message[at + gone :]
    cuts = sorted(draw(st.lists(st.integers(0, len(message)), max_size=2)))
    return [
        message[start:end]
        for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True)
        if start < end
    ]


@contextmanager
def taken(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> Iterator[list[int]]:
    """Count how often the short way was taken."""
    times: list[int] = []
    usual = getattr(kind, name)

    def count(*args: Any) -> Any:
        times.append(1)
        return usual(*args)

    with monkeypatch.context() as patched:
        patched.setattr(kind, name, count)
        yield times


BODIES = st.one_of(
    st.sampled_from((BODY, b'{"model":"other"}', b"{}", b"", b"x", b'{"model":"m","model":"m"}')),
    st.binary(max_size=30),
)


@given(
    form=st.sampled_from((0, 1)),
    key=st.sampled_from((*KEYS, b"sk-unknown", b"", b"sk one", b"sk-one ", b"\xc3\xa9", b"sk-one\t")),
    body=BODIES,
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_a_request_has_the_same_answer_whether_its_head_is_known_or_parsed(form, key, body, data):
    pieces = data.draw(changed(request(form, key, body)))
    after = data.draw(changed(request(form, KEYS[0])))
    known, parsed = World(learns=True), World(learns=False)
    for world in (known, parsed):
        world.asks(request(form, KEYS[0]))
        world.answers(answer(0))
        world.asks(*pieces)
        world.answers(answer(0))
        world.asks(*after)
    assert known.told == parsed.told


@given(
    form=st.sampled_from((0, 1, 2)),
    body=st.one_of(st.sampled_from((ANSWER, b"{}", b"")), st.binary(max_size=30)),
    asks_stream=st.booleans(),
    data=st.data(),
)
@example(form=0, body=ANSWER, asks_stream=True, data=None)
@settings(max_examples=150, deadline=None)
def test_an_engines_answer_passes_the_same_whether_its_head_is_known_or_parsed(form, body, asks_stream, data):
    pieces = [answer(form, body)] if data is None else data.draw(changed(answer(form, body)))
    asked = BODY[:-1] + b',"stream":true}' if asks_stream else BODY
    known, parsed = World(learns=True), World(learns=False)
    for world in (known, parsed):
        for _ in range(2):
            world.asks(request(0, KEYS[0]))
            world.answers(answer(form))
        world.asks(request(0, KEYS[1], asked))
        world.answers(*pieces)
        world.asks(request(0, KEYS[1]))
        world.answers(answer(form))
    assert known.told == parsed.told


@pytest.mark.parametrize("form", range(len(HEADS)))
def test_the_same_head_with_another_key_and_size_needs_no_parser(form, monkeypatch):

    world = World(learns=True)
    world.asks(request(form, KEYS[0]))
    world.answers(answer(0))
    with taken(monkeypatch, RequestReader, "_take") as times:
        world.asks(request(form, KEYS[1], BODY + b" " * 100))
        world.answers(answer(0))
        world.asks(request(form, b"sk-unknown"))
    assert len(times) == 2
    assert [(said[0], said[2].key_id) for said in world.pages.said[:2]] == [(200, 0), (200, 1)]
    assert world.pages.said[2][0] == 401


@pytest.mark.parametrize("form", range(len(ANSWER_HEADS)))
def test_the_same_answers_head_with_another_size_needs_no_parser(form, monkeypatch):
    world = World(learns=True)
    with taken(monkeypatch, EngineConnection, "_at_once") as times:
        for size in (0, 10, 100):
            world.asks(request(0, KEYS[0]))
            world.answers(answer(form, ANSWER + b" " * size))
    assert len(times) == 2
    assert [said[0] for said in world.pages.said] == [400 if form == 2 else 200] * 3


def reachable(root: object) -> Iterator[object]:
    """Everything that is kept because ``root`` is, but modules, classes and functions."""
    seen, left = {id(root)}, [root]
    while left:
        each = left.pop()
        yield each
        for other in gc.get_referents(each):
            if (
                id(other) not in seen
                and not isinstance(other, type)
                and type(other).__name__ not in {"module", "function"}
            ):
                seen.add(id(other))
                left.append(other)


@pytest.mark.parametrize("form", range(len(HEADS)))
def test_nothing_of_a_credential_is_kept_with_the_head_of_its_request(form):
    world = World(learns=True)
    for key in (*KEYS, b"sk-unknown"):
        world.asks(request(form, key))
        world.answers(answer(0))
    assert len(world.server.known._known) == 1
    for root in (world.server.known, world.gateway):
        kept = [each for each in reachable(root) if isinstance(each, bytes | str)]
        assert kept
        text = b" ".join(each.encode() if isinstance(each, str) else each for each in kept)
        for key in (*KEYS, b"sk-unknown"):
            assert key not in text


@pytest.mark.parametrize(
    "line",
    [
        b"Cookie: gpustack_session=secret",
        b"Proxy-Authorization: Basic secret",
        b"Api-Key: secret",
        b"X-Session-Token: secret",
        b"Idempotency-Key: secret",
    ],
)
def test_a_head_that_may_hold_another_secret_is_not_kept(line):
    world = World(learns=True)
    first, rest = request(0, KEYS[0]).split(b"\r\n", 1)
    world.asks(b"%b\r\n%b\r\n%b" % (first, line, rest))
    world.answers(answer(0))
    assert world.pages.said[0][0] == 200
    assert not world.server.known._known


def test_a_head_with_a_query_or_another_scheme_is_not_kept():
    world = World(learns=True)
    world.asks(request(0, KEYS[0]).replace(b"completions HTTP", b"completions?token=secret HTTP"))
    world.answers(answer(0))
    world.asks(request(0, KEYS[0]).replace(b"Bearer", b"bearer"))
    world.answers(answer(0))
    world.asks(request(0, KEYS[0]).replace(b"Bearer", b"Basic"))
    assert [said[0] for said in world.pages.said] == [200, 200, 401]
    assert not world.server.known._known


@pytest.mark.parametrize("learns", [True, False])
def test_what_was_asked_before_has_no_say_in_how_a_known_head_is_refused(make_side, learns):
    side = make_side(body_bytes=100)
    if not learns:
        side.server.known = NothingIsLearned()
    for message in (request(0, KEYS[0]), b"HEAD / HTTP/1.1\r\nHost: gateway\r\n\r\n"):
        side.reader.feed(message)
        assert side.reader.ready.pop().refusal is None
    side.reader.feed(request(0, KEYS[0], b"x" * 101))
    (refused,) = side.reader.ready
    assert refused.refusal.status == 413
    assert not refused.head_only
    assert side.reader.deaf
