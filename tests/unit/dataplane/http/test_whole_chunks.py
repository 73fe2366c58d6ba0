"""Chunks that pass as they came: a sink hears of the same bytes, and of the same faults, as through the parser."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from .test_reading_answers import Asked, Taken

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[]}\n\n'


def chunk(data: bytes, size: str = "%x") -> bytes:
    return size.encode() % len(data) + b"\r\n" + data + b"\r\n"


class Passing(Taken):
    """A sink that sends chunks on as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    def on_chunk(self, piece: bytes, start: int) -> None:
        self.passed += 1
        assert piece.endswith(b"\n\n\r\n")
        self.on_data(piece[start:-2], piece)


def heard(pieces: list[bytes], *, passing: bool) -> Taken:
    asked = Asked()
    asked.sink = asked.exchange.sink = sink = Passing()
    for piece in pieces:
        if asked.transport.is_closing() or sink.ends or sink.failures:
            break
        asked.connection.data_received(piece)
        if passing and sink.status and not asked.exchange.ended:
            asked.exchange.at_chunk = sink.on_chunk
    return sink


def test_whole_events_pass_and_the_end_is_parsed():
    sink = heard([HEAD, chunk(EVENT), chunk(EVENT), b"0\r\n\r\n"], passing=True)
    assert sink.passed == 2
    assert sink.whole
    assert sink.body == EVENT + EVENT
    assert sink.raw == chunk(EVENT) * 2 + b"0\r\n\r\n"


def test_a_chunk_within_another_one_is_text():
    inner = chunk(EVENT)
    outer = b"data: " + inner + b"\n\n"
    # The inner one comes alone, in a read of its own.
    pieces = [HEAD, b"%x\r\ndata: " % len(outer), inner, b"\n\n\r\n", chunk(EVENT), b"0\r\n\r\n"]
    sink = heard(pieces, passing=True)
    assert sink.passed == 1
    assert sink.whole
    assert sink.body == outer + EVENT


def test_an_answer_that_is_not_in_chunks_has_none():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    sink = heard([head, chunk(EVENT)], passing=True)
    assert sink.passed == 0
    assert sink.body == chunk(EVENT)


def test_what_is_not_written_as_we_would_is_parsed():
    for piece in (
        chunk(EVENT, "0%x"),
        chunk(EVENT * 9, "%X"),
        b"%x;a=b\r\n%b\r\n" % (len(EVENT), EVENT),
    ):
        sink = heard([HEAD, piece, b"0\r\n\r\n"], passing=True)
        assert sink.passed == 0
        assert sink.whole


def test_bytes_after_the_end_are_refused():
    sink = heard([HEAD, chunk(EVENT), b"0\r\n\r\n" + chunk(EVENT)], passing=True)
    assert sink.ends == [False]


PIECES = st.one_of(
    st.builds(chunk, st.sampled_from([EVENT, b"\n\n", b"x\n\n", b"a" * 300 + b"\n\n", b"no event", chunk(EVENT)])),
    st.sampled_from([b"0\r\n\r\n", b"\r\n", b"5\r\n", b"5", b"\n\n\r\n", b"0\r\nTrailer: x\r\n\r\n"]),
)  # fmt: skip


@given(st.lists(PIECES, max_size=8), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_what_passes_is_what_the_parser_would_have_told(
    parts: list[bytes], cuts: list[int], alone: bool
) -> None:
    body = b"".join(parts)
    # Each in a read of its own, or all in one, cut further.
    ends = itertools.accumulate(map(len, parts)) if alone else (len(body),)
    bounds = sorted({0, *ends, *(cut for cut in cuts if cut < len(body))})
    pieces = [HEAD, *(body[start:end] for start, end in itertools.pairwise(bounds))]
    passed, parsed = heard(pieces, passing=True), heard(pieces, passing=False)
    assert (passed.body, passed.raw, passed.ends) == (parsed.body, parsed.raw, parsed.ends)
    assert [each.message for each in passed.failures] == [each.message for each in parsed.failures]
