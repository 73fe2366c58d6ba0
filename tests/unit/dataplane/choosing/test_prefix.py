from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.choosing import prefix

SALT = prefix.salt("m")


def body(*texts: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "m", **more, "messages": messages}).encode()


def test_requests_that_begin_alike_share_the_marks_of_what_they_share() -> None:
    one = prefix.marks(body("s" * 8000, "one " * 2000), SALT)
    two = prefix.marks(body("s" * 8000, "two " * 2000), SALT)
    shared = [depth for depth, *same in zip(prefix.DEPTHS, one, two, strict=False) if len(set(same)) == 1]

    assert shared == [1024, 1536, 2048, 3072, 4096, 6144]
    assert len(one) == len([depth for depth in prefix.DEPTHS if depth < 16_000])


def test_what_stands_before_the_messages_does_not_matter() -> None:
    assert prefix.marks(body("a" * 4000), SALT) == prefix.marks(body("a" * 4000, stream=True, seed=7), SALT)


def test_models_share_nothing() -> None:
    assert set(prefix.marks(body("a" * 9000), SALT)).isdisjoint(
        prefix.marks(body("a" * 9000), prefix.salt("other"))
    )


def test_a_short_conversation_has_no_marks() -> None:
    assert prefix.marks(body("hello"), SALT) == ()
    assert prefix.marks(b"", SALT) == ()


@pytest.mark.parametrize("key", ["prompt", "input"])
def test_other_requests_begin_with_their_text(key: str) -> None:
    one = json.dumps({"model": "m", key: "x" * 4000}).encode()
    two = json.dumps({"model": "m", "n": 1, key: "x" * 4000}).encode()

    assert prefix.marks(one, SALT) == prefix.marks(two, SALT) != ()


def test_a_system_prompt_beside_the_messages_comes_before_them() -> None:
    one = json.dumps({"messages": [{"role": "user", "content": "a"}], "system": "s" * 4000}).encode()
    two = json.dumps({"messages": [{"role": "user", "content": "b"}], "system": "s" * 4000}).encode()
    first = json.dumps({"system": "s" * 4000, "messages": [{"role": "user", "content": "b"}]}).encode()
    marks = [prefix.marks(each, SALT, system_apart=True) for each in (one, two)]

    assert marks[0][:4] == marks[1][:4]
    assert len(marks[0]) >= 4
    assert prefix.marks(first, SALT, system_apart=True)[:4] == marks[0][:4]


def test_the_cost_of_a_huge_body_is_bounded() -> None:
    marks = prefix.marks(body("a" * 3_000_000), SALT)

    assert len(marks) == len(prefix.DEPTHS)
    assert prefix.DEPTHS[-1] == 128 << 10


@given(st.binary(max_size=5000))
def test_any_bytes_have_marks_or_none(content: bytes) -> None:
    for apart in (False, True):
        marks = prefix.marks(content, SALT, system_apart=apart)
        assert len(marks) <= sum(depth <= len(content) for depth in prefix.DEPTHS)
        assert all(0 <= mark < 1 << 32 for mark in marks)


def test_sessions_differ_by_their_value_and_by_the_model() -> None:
    found = {
        prefix.session(b"one", SALT),
        prefix.session(b"two", SALT),
        prefix.session(b"one", prefix.salt("x")),
    }

    assert len(found) == 3
    assert 0 not in found
