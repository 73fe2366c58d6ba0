"""A prompt counts by its text, whatever JSON is around it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering.prompts import text_bytes

WORDS = "Count from one to a hundred, please."


def measured(body: dict[str, Any], **how: Any) -> int:
    written = json.dumps(body, **how).encode()
    return text_bytes(written, len(written))


def a_chat(*messages: object, **more: Any) -> dict[str, Any]:
    return {"model": "a-model-with-a-long-name", "messages": list(messages), "stream": True, **more}


def says(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": WORDS},
        {"input": [WORDS]},
        {"input": WORDS, "instructions": ""},
        {"query": WORDS[:10], "documents": [WORDS[10:20], {"text": WORDS[20:]}]},
        {"text_1": WORDS[:5], "text_2": [WORDS[5:]]},
    ],
)
def test_each_apis_text_is_found(body: dict[str, Any]) -> None:
    assert measured({"model": "x", "temperature": 0.5, **body}) == len(WORDS)


def test_a_message_has_its_template_around_it_and_no_json() -> None:
    said = len(WORDS) + 16
    assert measured(a_chat(says(WORDS))) == said
    assert measured(a_chat(says(WORDS), max_tokens=1000, stop=["x" * 500]), indent=8) == said
    assert measured(a_chat(says([{"type": "text", "text": WORDS}]))) == said
    assert measured(a_chat(says(WORDS), says(WORDS), system=WORDS)) == 2 * said + len(WORDS)


def test_pictures_and_sound_are_no_text() -> None:
    url = "data:image/png;base64," + "A" * 5000
    parts = [
        {"type": "text", "text": WORDS},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "source": {"type": "base64", "data": "A" * 5000}},
        {"type": "input_audio", "input_audio": {"data": "A" * 5000, "format": "wav"}},
    ]
    assert measured(a_chat(says(parts))) == len(WORDS) + 16


def test_tokens_by_their_numbers_and_tools_count() -> None:
    assert measured({"model": "x", "prompt": [11, 12, 13]}) == 12
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert measured(a_chat(says(WORDS), tools=tools)) == len(WORDS) + 16 + len(json.dumps(tools))


def test_what_cannot_be_decoded_or_is_too_large_counts_as_it_was_weighed() -> None:
    assert text_bytes(b'{"messages":', 12) == 12
    assert text_bytes(b'{"prompt":"' + b"x" * 100_000 + b'"}', 77) == 77


@given(st.binary(max_size=80))
def test_any_bytes_count_no_more_than_they_weigh(body: bytes) -> None:
    assert 0 <= text_bytes(body, len(body)) <= len(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_any_value_of_any_member_can_be_weighed(value: Any) -> None:
    assert (
        0
        <= measured({"model": "x", "messages": value, "input": value})
        <= len(json.dumps({"model": "x", "messages": value, "input": value}))
    )
