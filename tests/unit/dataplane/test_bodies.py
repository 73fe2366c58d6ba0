from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane import body
from gpustack.dataplane.errors import ApiError

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON), st.text(), st.booleans())
def test_the_model_is_read_as_any_json_reader_does(
    others: dict[str, object], model: str, ascii_only: bool
) -> None:
    text = json.dumps({**others, "model": model}, ensure_ascii=ascii_only)
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return

    assert body._model_of(content) == model


@given(st.binary(max_size=60))
def test_any_bytes_give_a_model_or_a_clear_error(content: bytes) -> None:
    with contextlib.suppress(ApiError):
        assert isinstance(body._model_of(content), str)


def test_model_inside_other_objects_does_not_count() -> None:
    assert body._model_of(b'{"tools": [{"model": "a"}], "model": "b", "x": {"model": "c"}}') == "b"


async def test_a_large_body_is_read_elsewhere_with_the_same_result() -> None:
    content = json.dumps({"padding": "\u00e9" * 1_000_000, "model": "m"}).encode()

    assert await body.model_of(content) == "m"


@pytest.mark.parametrize("content", [b'{"model":' + b"[" * 200_000, b'{"\\u0061":' + b"[" * 200_000])
def test_deep_nesting_is_an_error_and_no_crash(content: bytes) -> None:
    with pytest.raises(ApiError):
        body._model_of(content)
