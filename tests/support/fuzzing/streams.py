"""Answers: their usage is read whatever the cuts, and forcing it shows a client nothing that it did not ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gpustack.dataplane.metering.answers import answer_reader, read_all
from gpustack.dataplane.metering.usage import Usage
from support.fuzzing.cuts import ways

_SSE = b"text/event-stream"
_JSON = b"application/json"
WORDS = (
    *(b"data: ", b"data:", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n", b"\r", b"event: ", b": comment\n\n", b"data: [DONE]\n\n"),
    *(b'"usage":', b'"usage":null', b'"choices":[]', b'"choices":[{"index":0,"delta":{"content":"x"}}]', b'"timings":'),
    *(b'"finish_reason":"stop"', b'"finish_reason": "length"', b'"system_fingerprint":"f"', b'"prompt_tokens":9'),
    *(b'"completion_tokens":2', b'"input_tokens":1', b'"output_tokens":3', b'"type":"message_delta"', b'"message":'),
    *(b'"response":', b'"text":"x"', b"{", b"}", b",", b'{"cache_n":8,"prompt_n":1,"predicted_n":2}', b"event: message_delta\n"),
    *(b'{"prompt_tokens":9,"completion_tokens":2}', b'"type":"response.completed"', b'"prompt_tokens_details":{"cached_tokens":8}'),
)  # fmt: skip

_USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
_TIMINGS = {"cache_n": 8, "prompt_n": 1, "predicted_n": 2}


def _events(*data: object) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (each if isinstance(each, bytes) else json.dumps(each).encode()) for each in data
    )


def _chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def seeds() -> Iterable[bytes]:
    """Return streams of engines, with usage asked for and without."""
    text = [
        _chunk({"role": "assistant", "content": ""}),
        *(_chunk({"content": each}) for each in ("A", 'b "usage"', "C")),
    ]
    last = _chunk({}, "stop")
    usage = {"id": "c", "choices": [], "usage": _USAGE}
    yield _events(*text, last, b"[DONE]")
    yield _events(*text, last, usage, b"[DONE]")
    yield _events(*text, last, {**usage, "timings": _TIMINGS}, b"[DONE]")
    yield _events(*text, last, {**usage, "system_fingerprint": "f"}, b"[DONE]").replace(b"\n", b"\r\n")
    yield _events(*({**each, "usage": None} for each in text), last, usage, b"[DONE]").replace(b": ", b":")
    yield _events(*text, {**last, "usage": _USAGE}, b"[DONE]")
    yield _events(*text, last, usage)[:-40]
    yield b": waiting\n\n" + _events(*text[:2])
    yield _events(
        {"choices": [{"text": "A", "index": 0}]},
        {"choices": [{"text": "", "finish_reason": "length"}], "usage": _USAGE},
    )
    yield _events({"error": {"message": "x"}})
    messages = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 1, "cache_read_input_tokens": 8, "output_tokens": 0}}},
        {"type": "content_block_delta", "delta": {"text": "Hello"}},
        {"type": "message_delta", "usage": {"output_tokens": 2}},
    ]  # fmt: skip
    yield b"".join(b"event: %b\n" % each["type"].encode() + _events(each) for each in messages)  # type: ignore[attr-defined]
    responses = [
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": {"usage": {"input_tokens": 9, "output_tokens": 2}}},
    ]
    yield b"".join(b"event: %b\n" % each["type"].encode() + _events(each) for each in responses)  # type: ignore[attr-defined]


def documents() -> Iterable[bytes]:
    """Return answers that are no streams."""
    yield json.dumps(
        {"choices": [{"message": {"content": 'x "usage"'}}], "usage": _USAGE, "timings": _TIMINGS}
    ).encode()
    yield json.dumps({"usage": {"input_tokens": 1, "output_tokens": 3}}).encode()
    yield json.dumps({"choices": [], "timings": _TIMINGS}).encode()
    yield b'{"usage":{"total_tokens":9},"usage":null}'
    yield b'{"usage":{"prompt_tokens":1e400}}'
    yield b'{"data":[1,2,3],"a":{"usage":{"prompt_tokens":5}}}'


def run(data: bytes) -> None:
    """Read the stream ``data``, forced and not."""
    for body in (data, _as_stream(data)):
        _passes_as_it_is(body)
        _shows_nothing_forced(body)


def _as_stream(data: bytes) -> bytes:
    """Make a stream of chunks that are all right of what is none: each line one word of an answer."""
    words = data.split(b"\n")[:6]
    text = [_chunk({"content": each.decode("latin-1")}) for each in words]
    return _events(
        *text, _chunk({}, "stop"), {"choices": [], "usage": _USAGE, "timings": _TIMINGS}, b"[DONE]"
    )


def _through(
    pieces: Sequence[bytes], kind: bytes = _SSE, *, forced: bool = False
) -> tuple[bytes, Usage, int]:
    reader = answer_reader(kind, prompt_bytes=100, forced=forced, clock=lambda: 0.0)
    sent = b"".join([reader.feed(piece) for piece in pieces] + [reader.end()])
    return sent, reader.usage, reader.chunks


def _passes_as_it_is(body: bytes) -> None:
    whole = _through([body])
    assert read_all(_SSE, body)[0] == body
    assert whole[0] == body
    _possible(whole[1])
    for pieces in ways(body):
        cut = _through(pieces)
        assert cut[0] == body
        _counts_the_same(cut[1:], whole[1:], body)


def _counts_the_same(one: tuple[Usage, int], other: tuple[Usage, int], body: bytes) -> None:
    """What an engine tells is the same in every cut; pieces are counted as they come, with or without text."""
    assert (one[0].prompt, one[0].cached) == (other[0].prompt, other[0].cached)
    if not (one[0].estimated or other[0].estimated):
        assert one[0] == other[0], "another cut is read as something else"
    assert max(one[1], other[1]) <= len(_told(body)) + 1


def _shows_nothing_forced(body: bytes) -> None:
    sent, usage, chunks = _through([body], forced=True)
    for pieces in ways(body):
        cut = _through(pieces, forced=True)
        assert cut[0] == sent, "another cut shows something else"
        _counts_the_same(cut[1:], (usage, chunks), body)
    _counts_the_same((usage, chunks), _through([body])[1:], body)
    try:
        body.decode()
    except UnicodeDecodeError:
        return  # readers differ about what is none of theirs
    events = _told(body)
    if re.search(rb"(?:^|[\r\n])event:", body) is None:
        assert _same(_told(sent), _without_usage(events)), "a client sees what it did not ask for"
    elif body.startswith(b"event:") and events[0][1] is not None:
        assert sent == body, "something is taken out of a stream that tells its usage unasked"


_END = re.compile(rb"\n\r?\n|\r\r")
#: The event itself, and the document in it; None where there is none.
_Told = tuple[bytes, dict[str, Any] | None]


def _told(stream: bytes) -> list[_Told]:
    """Return the events of a stream, its unfinished rest last."""
    found: list[_Told] = []
    position = 0
    while position < len(stream):
        match = _END.search(stream, position)
        if match is None:
            found.append((stream[position:], None))
            break
        event = stream[position : match.end()]
        position = match.end()
        found.append((event, _document(event)))
    return found


def _document(event: bytes) -> dict[str, Any] | None:
    lines = [line for line in re.split(rb"[\r\n]", event) if line.startswith(b"data:")]
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines)
    try:
        found = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _without_usage(events: list[_Told]) -> list[_Told]:
    """Return what a client gets that has not asked: all but the chunks that hold nothing else than usage.

    What such a chunk took over from the one with the finish reason is put back there; the bytes of that one are empty
    here, since only its document is known.
    """
    shown: list[_Told] = []
    after_end = False
    for event, document in events:
        if document is None or document.get("choices") != [] or not _has_counts(document.get("usage")):
            shown.append((event, document))
            after_end = b'"finish_reason":"' in event or b'"finish_reason": "' in event
        elif after_end:
            last = shown[-1][1]
            moved = {name: document[name] for name in ("timings", "system_fingerprint") if name in document}
            if last is not None and not moved.keys() <= last.keys():
                shown[-1] = (b"", {**moved, **last})
    return shown


def _has_counts(usage: object) -> bool:
    if not isinstance(usage, dict):
        return False
    names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
    return any(_count(usage.get(name)) for name in names)


def _same(sent: list[_Told], expected: list[_Told]) -> bool:
    if len(sent) != len(expected):
        return False
    return all(
        one[1] == other[1] and (not other[0] or one[0] == other[0])
        for one, other in zip(sent, expected, strict=True)
    )


def run_document(data: bytes) -> None:
    """Read the document ``data``."""
    whole = _through([data], _JSON)
    assert whole[0] == data
    _possible(whole[1])
    for pieces in ways(data):
        assert _through(pieces, _JSON) == whole
    padded = b'{"pad":"' + b"x" * 70_000 + b'",' + data.lstrip()[1:]
    for body in (data, padded):
        _told_as_decoded(body)


def _told_as_decoded(body: bytes) -> None:
    _, usage, _ = _through([body], _JSON)
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict) or body.count(b"usage") + body.count(b"\\u") != 1 or b"timings" in body:
        return
    told = document.get("usage")
    if isinstance(told, dict) and _count(told.get("prompt_tokens")) and _count(told.get("completion_tokens")):
        assert (usage.prompt, usage.completion) == (told["prompt_tokens"], told["completion_tokens"])
        assert not usage.estimated


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _possible(usage: Usage) -> None:
    assert 0 <= usage.prompt < 1 << 41
    assert 0 <= usage.cached < 1 << 40
    assert 0 <= usage.completion < 1 << 40
