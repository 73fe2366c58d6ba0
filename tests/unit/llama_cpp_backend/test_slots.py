"""How full llama.cpp's cache is, from what it says of its slots, and from whatever else an answer may be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack_backends.llama_cpp.slots import slots_in_use

IDLE = {"id": 0, "n_ctx": 512, "is_processing": False, "n_prompt_tokens": 400}
BUSY = {
    "id": 1, "n_ctx": 512, "is_processing": True, "n_prompt_tokens": 100, "next_token": [{"n_decoded": 28}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("slots", "used"),
    [
        ([IDLE], 0.0),
        ([BUSY], 0.25),
        ([BUSY, IDLE], 0.125),
        ([{**BUSY, "next_token": {"n_decoded": 156}}], 0.5),
        ([{**BUSY, "n_prompt_tokens": 9999}], 1.0),
        ([], None),
        ([{}], None),
        ({"error": {"code": 501}}, None),
    ],
)
def test_what_requests_hold_counts_and_what_they_left_does_not(slots: Any, used: float | None) -> None:
    assert slots_in_use(json.dumps(slots)) == used


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["n_ctx", "is_processing", "n_prompt_tokens", "next_token", "n_decoded", "x"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_whatever_it_says_the_answer_is_a_part_or_none(value: Any) -> None:
    found = slots_in_use(json.dumps(value))
    assert found is None or 0 <= found <= 1


@given(st.text())
def test_what_is_no_json_tells_nothing(text: str) -> None:
    found = slots_in_use(text)
    assert found is None or 0 <= found <= 1
