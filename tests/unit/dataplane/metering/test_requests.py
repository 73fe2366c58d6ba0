"""Bodies are read as engines read them, and changed at one place only."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering.requests import (
    AT_ONCE,
    Asked,
    BodyReader,
    force_usage,
    read,
    rename_model,
    rewrite,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=8,
)
NAMES = st.text() | st.sampled_from(["messages", "stream", "stream_options"])


def in_pieces(body: bytes, size: int = 50) -> Asked:
    reader = BodyReader()
    for start in range(0, len(body), size):
        reader.feed(body[start : start + size])
    return reader.end()


@settings(max_examples=40)
@given(st.dictionaries(NAMES, JSON), st.text(), st.booleans(), st.integers(1, 60))
def test_at_once_and_in_pieces_the_model_is_the_one_that_an_engine_reads(
    others: dict[str, object], model: str, ascii_only: bool, size: int
) -> None:
    try:
        body = json.dumps({**others, "model": model}, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return

    for asked in (read(body), in_pieces(body, size)):
        assert asked.model == model
        assert asked.stream is (others.get("stream") is True)
        assert json.loads(rename_model(body, asked.span, 'new "é"')) == {**others, "model": 'new "é"'}


@given(st.binary(max_size=60))
def test_any_bytes_give_a_model_or_a_clear_error(body: bytes) -> None:
    for reading in (read, in_pieces):
        with contextlib.suppress(ApiError):
            assert isinstance(reading(body).model, str)


def test_the_model_is_found_wherever_it_stands_in_a_long_body() -> None:
    long = "x" * 5000
    for body in (
        json.dumps({"model": "m", "a": long}),
        json.dumps({"a": long, "model": "m"}),
        json.dumps({"a": long, "model": "m", "b": long}),
        json.dumps({"a": {"model": 1}, "b": ["model", '"model"'], "model": "m", "c": {"model": 2}}),
        json.dumps({"model": "m", "c": 'x "model"'}),
        '{"a": "say \\"model", "mod\\u0065l": "m"}',
    ):
        asked = read(body.encode())

        assert asked.model == "m"
        assert body[slice(*asked.span)] == '"m"'


def test_a_body_of_many_megabytes_is_read_in_pieces() -> None:
    body = json.dumps({"messages": "x\n\u00e9" * 300_000, "model": "m", "stream": True}).encode()
    assert len(body) > AT_ONCE

    assert read(body) == in_pieces(body, 100_000) == Asked("m", read(body).span, stream=True, options=())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model":"a","model":"b"}', 'has the key "model" more than once'),
        (b'{"model":"a","mod\\u0065l":"b"}', 'has the key "model" more than once'),
        (b'{"\\u006Dodel":"a","mod\\u0065l":"b"}', 'has the key "model" more than once'),
        (b'{"model":"a","x":1,"model":null}', 'has the key "model" more than once'),
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b"{}", 'lacks "model"'),
        (b'{"model":null}', 'lacks "model"'),
        (b'{"a":"model"}', 'lacks "model"'),
        (b'{"a":{"model":"x"}}', 'lacks "model"'),
        (b'{"model":3}', "must be a string"),
        (b'{"model":["x"]}', "must be a string"),
        (b'"model"', "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b'{"model":"x",}', "not valid JSON"),
        (b'{"model":"x"', "not valid JSON"),
        (b'{"model":"x"} {}', "not valid JSON"),
        (b'{"model":"x","a":NaN}', "not valid JSON"),
        (b'{"model":"\xff"}', "not valid UTF-8 at byte 10"),
        (b'{"a":"\xff","model":"x"}', "not valid UTF-8 at byte 6"),
        (b'{"a":"\\ud800","model":"x"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"model":"x"}', "byte order mark"),
        (b'{"model":"x","a":' + b"[" * 200_000, "too deeply|not valid JSON"),
        (b'{"mod\\u0065l":"x","a":' + b"[" * 200_000, "too deeply|not valid JSON"),
        (b'{"model":"x","a":' + b"[" * 2000 + b"]" * 2000 + b"}", "too deeply"),
    ],
)
def test_each_fault_has_one_clear_error(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        read(body)
    assert caught.value.status == 400
    if "not valid JSON" not in message:  # what only a whole reading sees is left to the engine
        with pytest.raises(ApiError, match=message.split(" at byte", maxsplit=1)[0]):
            in_pieces(body)


@settings(max_examples=40)
@given(st.dictionaries(NAMES, JSON), st.sampled_from([None, {}, {"include_usage": False}, {"include_usage": True, "x": 1}, {"continuous_usage_stats": True}]), st.booleans(), st.sampled_from([None, 1]))  # fmt: skip
def test_usage_is_asked_for_and_nothing_else_changes(
    others: dict[str, object], options: dict[str, object] | None, with_options: bool, indent: int | None
) -> None:
    document: dict[str, Any] = {**others, "model": "m", "stream": True}
    document.pop("stream_options", None)
    if with_options:
        document["stream_options"] = options
    try:
        body = json.dumps(document, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    already = with_options and options is not None and options.get("include_usage") is True

    for asked in (None, read(body), in_pieces(body)):
        changed, forced = force_usage(body, asked)

        assert forced is not already
        assert json.loads(changed) == {
            **document,
            "stream_options": {**((options or {}) if with_options else {}), "include_usage": True},
        }
        assert rewrite(body, read(body), model="n", usage=True) == (
            rename_model(changed, read(changed).span, "n"),
            forced,
        )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b' {"model":"m","stream":true}',
            b' {"stream_options":{"include_usage":true},"model":"m","stream":true}',
        ),
        (b'{"model":"m"}', None),
        (b'{"model":"m","stream":false}', None),
        (b'{"model":"m","stream":"true"}', None),
        (b'{"model":"m","stream":true,"stream_options":3}', None),
        (
            b'{"model":"m","stream":true,"stream_options": { } }',
            b'{"model":"m","stream":true,"stream_options": {"include_usage":true } }',
        ),
        (
            b'{"model":"m","stream":true,"stream_options":{"include_usage":0,"include_usage":false}}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"include_usage":true}}',
        ),
        (
            b'{"model":"m","stream":true,"stream_options":null,"stream_\\u006fptions":{"a":1}}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"stream_\\u006fptions":{"include_usage":true,"a":1}}',
        ),
        (b'{"stream":false,"model":"m","stream":true,"stream_options":{"include_usage":true}}', None),
    ],
)
def test_what_asking_for_usage_does_to_the_bytes(body: bytes, expected: bytes | None) -> None:
    for asked in (None, read(body), in_pieces(body)):
        assert force_usage(body, asked) == ((body, False) if expected is None else (expected, True))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"stream_options":{},"a":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"model":"m","stream":true,"stream_options":{"a":"' + b"x" * 140_000 + b'"}}',
        b'{"model":"m","stream":"' + b"x" * 140_000 + b'","stream":true,"stream_options":{}}',
    ],
)
def test_what_cannot_be_changed_is_refused_when_it_is_read_and_not_in_the_midst(body: bytes) -> None:
    with pytest.raises(ApiError):
        read(body)


def test_nothing_to_change_copies_nothing() -> None:
    body = b'{"model":"m","stream":false}'

    assert rewrite(body, read(body), model="m", usage=True)[0] is body


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ('"max_tokens": 64', 64),
        ('"max_completion_tokens":7', 7),
        ('"max_output_tokens": 9', 9),
        ('"max_tokens": null', 0),
        ('"max_tokens": -1', 0),
        ('"max_tokens": "12"', 0),
        ('"max_tokens": 1.5', 0),
        ('"max_tokens": 99999999999999999999', 0),
        ('"messages": [{"max_tokens": 5}]', 0),
    ],
)
def test_the_most_tokens_of_the_answer_are_read(said: str, most: int) -> None:
    body = f'{{"model": "m", {said}}}'.encode()
    assert read(body).max_tokens == in_pieces(body).max_tokens == most
