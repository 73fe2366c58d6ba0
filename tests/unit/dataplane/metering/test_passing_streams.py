"""Pieces of a stream that pass without being looked into count as if they had been."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering.streams import StreamReader


def event(choices: str, more: str = "") -> bytes:
    return f'data: {{"id":"1","choices":[{choices}]{more}}}\n\n'.encode()


TEXT = event('{"index":0,"delta":{"content":" a"},"finish_reason":null}')
USAGE = ',"usage":{"prompt_tokens":7,"completion_tokens":3}'
EVENTS = st.sampled_from(
    [
        TEXT,
        TEXT * 2,
        TEXT + b"data: {",
        TEXT[:-1],
        event("", ',"usage":null'),
        event("", USAGE),
        event('{"index":0,"delta":{},"finish_reason":"stop"}'),
        b"data: [DONE]\n\n",
        b": comment\n\n",
        b"\n\n",
        b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n',
    ]
)


class Follower:
    """Follows a stream with a clock that goes on by a second with each piece."""

    def __init__(self, *, forced: bool, passing: bool) -> None:
        self.now = 0.0
        self.gaps: list[float] = []
        self.passing = passing
        self.passed = 0
        self.reader = StreamReader(100, clock=lambda: self.now, forced=forced, between=self.gaps.append)

    def take(self, data: bytes) -> bytes:
        self.now += 1.0
        size = b"%x\r\n" % len(data)
        chunk = size + data + b"\r\n"
        if self.passing and data.endswith(b"\n\n") and self.reader.passes(chunk, len(size), self.now):
            self.passed += 1
            return data
        return self.reader.feed(data)


@given(st.lists(EVENTS, max_size=60), st.booleans())
def test_a_stream_that_passes_is_counted_as_one_that_is_read(pieces: list[bytes], forced: bool) -> None:
    passing, reading = (Follower(forced=forced, passing=each) for each in (True, False))
    for piece in pieces:
        assert passing.take(piece) == reading.take(piece)
    assert passing.reader.end() == reading.reader.end()
    for each in (passing, reading):
        each.reader.tell_gaps()
    assert passing.reader.usage == reading.reader.usage
    assert passing.reader.chunks == reading.reader.chunks
    assert passing.reader.last_at == reading.reader.last_at
    assert passing.gaps == reading.gaps == [1.0] * max(0, len(pieces) - 1)


def test_text_passes_once_the_stream_has_begun():
    follower = Follower(forced=True, passing=True)
    for _ in range(100):
        assert follower.take(TEXT) == TEXT
    assert follower.passed == 97
    # Told as it goes on, not only at the end.
    assert len(follower.gaps) >= 64
    assert follower.reader.chunks == 100
