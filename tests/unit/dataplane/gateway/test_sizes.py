"""What a body weighs before anybody has counted its tokens."""

from __future__ import annotations

import json
from base64 import b64encode
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.gateway.sizes import size_of

_WORDS = "Of all that was said in those days, nothing is left; we asked them twice. "
_MANY = {
    "english": _WORDS,
    "german": "Größe und Maß übertrafen, was wir erwartet hätten: fünf Äpfel. ",
    "chinese": "從前有一座山山上有一座廟廟裏有一個老和尚在講故事",
    "code": "for(let i=0;i<n;i++){a[i]=b[i]*c[i];d.e.f(g,h);}",
    "numbers": "15496,995,318,257,1332,",
}


def a_body(text: str = "", picture: bytes = b"", *, ascii_only: bool = True) -> bytes:
    url = "data:image/png;base64," + b64encode(picture).decode()
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    return json.dumps(body, ensure_ascii=ascii_only).encode()


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("language", _MANY)
@pytest.mark.parametrize("size", [100, 30_000, 400_000])
def test_text_weighs_what_it_is_long(language: str, size: int, ascii_only: bool) -> None:
    sample = _MANY[language]
    body = a_body(sample * (size // len(sample)), ascii_only=ascii_only)
    assert size_of(body) == len(body)


@pytest.mark.parametrize("escaped", [False, True])
def test_a_picture_weighs_about_a_token_for_a_kibibyte(escaped: bool) -> None:
    body = a_body("What is this?", Random(7).randbytes(750_000))
    if escaped:  # as PHP writes it
        body = body.replace(b"/", b"\\/")
    assert 900 < size_of(body) // 4 < 4000


def test_a_form_is_files() -> None:
    assert size_of(_WORDS.encode() * 10_000, form=True) // 4 == len(_WORDS) * 10_000 // 1024


@given(st.integers(0, 300_000), st.integers(0, 300_000))
def test_of_both_each_weighs_its_own(text: int, picture: int) -> None:
    sample = _WORDS * (1 + text // len(_WORDS))
    body = a_body(sample[:text], b"\x5a" * picture)
    length = len(body)
    if length <= 16 << 10:
        assert size_of(body) == length
        return
    opaque = picture * 4 / 3
    expected = length - opaque + opaque / 256
    # Two borders, each within one place.
    assert abs(size_of(body) - expected) <= 2 * max(4 << 10, length >> 7) + 1
