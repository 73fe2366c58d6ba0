"""Keys as texts: what one signs, its public key proves, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.kit.signing import KEY_TEXT, bytes_of, new_key, public_key, sign, text_of, verified

ONE, OTHER = new_key(), new_key()


@given(st.binary(max_size=200))
def test_a_signature_is_proven_by_its_own_key_alone(message: bytes) -> None:
    signature = sign(ONE, message)

    assert verified(public_key(ONE), message, signature)
    assert not verified(public_key(OTHER), message, signature)
    assert not verified(public_key(ONE), message + b"\0", signature)


@given(st.text(max_size=100), st.text(max_size=100))
def test_rubbish_proves_nothing_and_breaks_nothing(key: str, signature: str) -> None:
    assert not verified(key, b"message", signature)
    assert not verified(public_key(ONE), b"message", signature)


@given(st.binary(max_size=80))
def test_a_text_stands_for_its_bytes(value: bytes) -> None:
    assert bytes_of(text_of(value)) == value


@pytest.mark.parametrize("text", ["A", "AB", "A=", "AAA=", "ä", "A A", "+/+/"])
def test_no_other_text_stands_for_the_same_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="no text of bytes"):
        bytes_of(text)


def test_keys_differ_and_fit_a_file() -> None:
    assert ONE != OTHER
    for key in (ONE, public_key(ONE)):
        assert KEY_TEXT.fullmatch(key)
