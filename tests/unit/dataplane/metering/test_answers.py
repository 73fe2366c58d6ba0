"""What real engines send is metered to the token, and a client gets what it would have got without that."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.dataplane.metering.answers import AnswerReader, answer_reader, read_all
from gpustack.dataplane.metering.usage import Usage

SSE = b"text/event-stream; charset=utf-8"
TAIL = ',"created":17,"id":"c","model":"m","system_fingerprint":"b0","object":"chat.completion.chunk"'
TIMINGS = '"timings":{"cache_n":8,"prompt_n":1,"prompt_ms":3.8,"predicted_n":2}'
USAGE = '"usage":{"completion_tokens":2,"prompt_tokens":9,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":8}}'
TOLD = Usage(prompt=9, cached=8, completion=2)


def events(*data: str, newline: str = "\n") -> bytes:
    return "".join(f"data: {each}{newline}{newline}" for each in data).encode()


def a_delta(delta: str, reason: str = "null") -> str:
    return f'{{"choices":[{{"finish_reason":{reason},"index":0,"delta":{delta}}}]{TAIL}}}'


TEXT = [
    a_delta('{"role":"assistant","content":null}'),
    a_delta('{"content":"Hél"}'),
    a_delta('{"content":"lo \\"usage\\""}'),
]
LAST = a_delta("{}", '"length"')
#: As llama.cpp of October 2026 answers, without and with `include_usage`.
LLAMA_PLAIN = events(*TEXT, LAST[:-1] + f",{TIMINGS}}}", "[DONE]")
LLAMA_ASKED = events(*TEXT, LAST, f'{{"choices":[]{TAIL},{USAGE},{TIMINGS}}}', "[DONE]")
LLAMA_TEXT = events(
    '{"choices":[{"text":"A","index":0,"logprobs":null,"finish_reason":null}],"object":"text_completion"}',
    '{"choices":[{"text":"B","index":0,"logprobs":null,"finish_reason":null}],"object":"text_completion"}',
    f'{{"choices":[{{"text":"","index":0,"finish_reason":"length"}}],{USAGE},"id":"c",{TIMINGS}}}',
    "[DONE]",
)
LLAMA_MESSAGES = b"""event: message_start
data: {"type":"message_start","message":{"id":"c","usage":{"cache_read_input_tokens":8,"input_tokens":1,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},"usage":{"output_tokens":2}}

event: message_stop
data: {"type":"message_stop"}

"""
LLAMA_RESPONSES = b"""event: response.created
data: {"type":"response.created","response":{"id":"r","usage":null}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","item_id":"m","delta":"Hello"}

event: response.output_text.delta
data: {"type":"response.output_text.delta","item_id":"m","delta":"!"}

event: response.completed
data: {"type":"response.completed","response":{"id":"r","usage":{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":8}}}}

"""
#: As vLLM 0.11 answers with `include_usage` and a system fingerprint.
VLLM_ASKED = events(
    '{"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
    '{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"A"},"finish_reason":null}]}',
    '{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"B"},"finish_reason":"stop"}]}',
    '{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}},"system_fingerprint":"v"}',
    "[DONE]",
)
STREAMS = {
    "llama.cpp": LLAMA_PLAIN,
    "llama.cpp, asked": LLAMA_ASKED,
    "llama.cpp, text": LLAMA_TEXT,
    "messages": LLAMA_MESSAGES,
    "responses": LLAMA_RESPONSES,
    "vLLM, asked": VLLM_ASKED,
}


def a_reader(
    kind: bytes = SSE, *, forced: bool = False, prompt_bytes: int = 400, **more: object
) -> AnswerReader:
    return answer_reader(
        kind,
        forced=forced,
        prompt_bytes=prompt_bytes,
        clock=itertools.count().__next__,
        **more,  # type: ignore[arg-type]
    )


def through(reader: AnswerReader, pieces: Iterable[bytes]) -> bytes:
    return b"".join([reader.feed(piece) for piece in pieces] + [reader.end()])


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("engine", STREAMS)
def test_streams_are_metered_to_the_token_and_pass_as_they_are(engine: str, size: int) -> None:
    stream = STREAMS[engine]
    for body in (stream, stream.replace(b"\n", b"\r\n")):
        reader = a_reader()

        assert through(reader, cut(body, size)) == body
        assert reader.usage == TOLD
        assert reader.chunks == 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 1 << 20])
def test_a_client_that_did_not_ask_sees_exactly_what_it_would_have_seen(size: int) -> None:
    for newline in (b"\n", b"\r\n"):
        reader = a_reader(forced=True)

        sent = through(reader, cut(LLAMA_ASKED.replace(b"\n", newline), size))

        assert sent == LLAMA_PLAIN.replace(b"\n", newline)
        assert reader.usage == TOLD


def test_a_fingerprint_that_moved_to_the_removed_chunk_is_put_back() -> None:
    reader = a_reader(forced=True)

    sent = through(reader, cut(VLLM_ASKED, 10)).decode().split("\n\n")

    assert json.loads(sent[2][6:]) == {
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": "B"}, "finish_reason": "stop"}],
        "system_fingerprint": "v",
    }
    assert sent[3:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("engine", ["llama.cpp", "llama.cpp, text", "messages", "responses"])
def test_other_streams_lose_nothing_when_usage_was_forced(engine: str) -> None:
    stream = STREAMS[engine]
    for size in (1, 50, 1 << 20):
        assert through(a_reader(forced=True), cut(stream, size)) == stream


def test_usage_that_is_null_in_every_chunk_stays() -> None:
    chunk = '{"choices":[{"index":0,"text":"a"}],"usage":null}'
    body = events(*[chunk] * 9, '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9}}', "[DONE]")
    reader = a_reader(forced=True)

    assert through(reader, [each + b"\n\n" for each in body.split(b"\n\n")[:-1]]) == events(
        *[chunk] * 9, "[DONE]"
    )
    assert reader.usage == Usage(9, 0, 9)


def test_an_answer_goes_on_piece_by_piece_and_unchanged_pieces_are_not_copied() -> None:
    reader = a_reader(forced=True)
    pieces = [each + b"\n\n" for each in LLAMA_ASKED.split(b"\n\n")[:3]] * 3

    for piece in pieces[3:]:
        assert reader.feed(piece) == piece
    reader = a_reader()
    assert all(reader.feed(piece) is piece for piece in pieces)


@pytest.mark.parametrize("forced", [False, True])
def test_a_stream_that_is_cut_off_is_counted_by_the_chunks_seen(forced: bool) -> None:
    for size in (1, 5, 10_000):
        reader = a_reader(forced=forced)
        body = events(*TEXT, *[TEXT[1]] * 10, TEXT[2] + "x")[:-4]
        for piece in cut(body, size):
            reader.feed(piece)

        assert reader.usage == Usage(prompt=100, completion=12, estimated=True)


def test_a_cut_off_stream_of_messages_has_the_prompt_that_its_first_event_told() -> None:
    reader = a_reader()
    reader.feed(LLAMA_MESSAGES[: LLAMA_MESSAGES.index(b"event: message_delta")])

    assert reader.usage == Usage(prompt=9, cached=8, completion=2, estimated=True)


def test_what_an_engine_counts_as_it_goes_is_taken_when_the_stream_is_cut_off() -> None:
    reader = a_reader()
    for count in range(1, 9):
        reader.feed(
            events(
                f'{{"choices":[{{"delta":{{"content":"ab"}}}}],"usage":{{"prompt_tokens":5,"completion_tokens":{count * 3}}}}}'
            )
        )

    assert reader.usage == Usage(prompt=5, completion=24)


@pytest.mark.parametrize("forced", [False, True])
def test_comments_long_events_and_garbage_pass(forced: bool) -> None:
    body = (
        b": waiting\n\n" + events(TEXT[1]) + b"data: {not json\n\n" + b"retry: 5\n\n"
        + b"data: {\ndata: }\n\n" + events('{"x":"' + "y" * 3_000_000 + '"}') + LLAMA_ASKED[:-14] + b": bye\r\r"
    )  # fmt: skip
    for size in (1000, 70_000, 1 << 23):
        reader = a_reader(forced=forced)

        sent = through(reader, cut(body, size))

        assert reader.usage == TOLD
        assert len(sent) == len(body) - (len(LLAMA_ASKED) - len(LLAMA_PLAIN) if forced else 0)


@settings(max_examples=50)
@given(st.lists(st.sampled_from([b"data:", b"\n", b"\r", b" ", b'{"choices":[],"usage":{"prompt_tokens":1}}', b"[DONE]", b"\xe4", b'"finish_reason":"x"', b"event: x\n", b"{", b"}", b'"usage"'])), st.lists(st.integers(0, 60), max_size=5))  # fmt: skip
def test_any_bytes_pass_a_stream_reader(parts: list[bytes], cuts: list[int]) -> None:
    body = b"".join(parts)
    places = [0, *sorted(at for at in cuts if at < len(body)), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(places)]

    assert through(a_reader(), pieces) == body
    assert read_all(SSE, body, forced=True)[0] == through(a_reader(forced=True), pieces)


#: Answers that are one document, and what they took.
DOCUMENTS: list[tuple[str, Usage]] = [
    (f'{{"choices":[{{"message":{{"content":"Hi"}}}}],{USAGE},{TIMINGS}}}', TOLD),
    (f'{{"choices":[],{TIMINGS}}}', TOLD),
    ('{"usage":{"cache_read_input_tokens":8,"input_tokens":1,"output_tokens":2}}', TOLD),
    ('{"usage":{"cache_creation_input_tokens":1,"cache_read_input_tokens":3,"input_tokens":2,"output_tokens":4}}', Usage(6, 3, 4)),
    ('{"usage":{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":8}}}', TOLD),
    ('{"data":[],"usage":{"prompt_tokens":9,"total_tokens":9}}', Usage(9)),
    ('{"results":[],"usage":{"total_tokens":9}}', Usage(9)),
    ('{"choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":999}"}}]}', Usage(100, estimated=True)),
    ('{"choices":[{"message":{"usage":{"prompt_tokens":999}}}]}', Usage(100, estimated=True)),
    ('{"usage":{"prompt_tokens":-1,"completion_tokens":"7"}}', Usage(100, estimated=True)),
    ('{"usage":"much"}', Usage(100, estimated=True)),
    ('{"usage":null}', Usage(100, estimated=True)),
    ('{"usage":', Usage(100, estimated=True)),
    ("not json", Usage(100, estimated=True)),
    ("", Usage(100, estimated=True)),
]  # fmt: skip


@pytest.mark.parametrize(("document", "usage"), DOCUMENTS)
def test_documents_are_metered_by_their_own_usage_only(document: str, usage: Usage) -> None:
    for size in (1, 10, 10_000):
        reader = a_reader(b"application/json")

        assert through(reader, cut(document.encode(), size)) == document.encode()
        assert reader.usage == usage


@pytest.mark.parametrize("first", [True, False])
def test_usage_is_found_anywhere_in_a_large_document(first: bool) -> None:
    data = f'"data":[{",".join(["[0.125,-3e-05]"] * 20_000)}],"text":"\\"usage\\":3"'
    body = f"{{{USAGE},{data}}}" if first else f'{{{data},{USAGE},"object":"list"}}'
    for size in (999, 65_536, 1 << 20):
        reader = a_reader(b"application/json; charset=utf-8")

        assert through(reader, cut(body.encode(), size)) == body.encode()
        assert reader.usage == TOLD


def test_compressed_answers_are_estimated_and_errors_cost_nothing() -> None:
    for reader, usage in (
        (a_reader(b"application/json", encoding=b"gzip"), Usage(100, estimated=True)),
        (a_reader(b"audio/mpeg"), Usage(100, estimated=True)),
        (a_reader(b"application/json", status=400), Usage()),
        (a_reader(b"application/json", estimate=False), Usage()),
        (a_reader(SSE, status=500), Usage()),
    ):
        assert through(reader, [b'{"x":1}']) == b'{"x":1}'
        assert reader.usage == usage


def test_times_are_those_of_the_first_and_the_last_piece() -> None:
    gaps: list[float] = []
    reader = a_reader(between=gaps.append)

    assert (reader.first_at, reader.last_at) == (None, None)
    through(reader, [each + b"\n\n" for each in LLAMA_PLAIN.split(b"\n\n")[:-1]])
    assert (reader.first_at, reader.last_at) == (0, 4)
    reader.tell_gaps()
    assert gaps == [1, 1, 1, 1]
