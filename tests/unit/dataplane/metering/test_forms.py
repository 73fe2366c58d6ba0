"""Forms: the model is found whatever the cuts, and anything that two readers might read differently is refused."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.metering.forms import FormReader, boundary_of, find, rename_in_form

B = b"xYz"


def a_form(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--" + B + b"\r\n" + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts) + (
        b"--" + B + b"--\r\n"
    )


def field(name: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"'


FILE = b'Content-Disposition: form-data; name="file"; filename="a \\"model.wav"\r\nContent-Type: audio/wav'


@given(st.binary(max_size=200), st.lists(st.integers(0, 600), max_size=8), st.booleans())
def test_the_model_is_found_whatever_the_file_and_the_cuts(
    content: bytes, cuts: list[int], first: bool
) -> None:
    parts = [(FILE, content), (field(b"model"), "größe".encode())]
    body = a_form(*(reversed(parts) if first else parts), (field(b"stream"), b"true"))
    reader = FormReader(B)
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    for start, end in itertools.pairwise(places):
        reader.feed(body[start:end])
    asked = reader.end()

    assert (asked.model, asked.stream) == ("größe", True)
    assert body[slice(*asked.span)].decode() == "größe"
    assert find(rename_in_form(body, asked.span, "n"), B).model == "n"
    assert len(rename_in_form(body, asked.span, "n")) == len(body) - 6


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_any_bytes_give_a_model_or_a_clear_error(before: bytes, after: bytes) -> None:
    for body in (before + after, before + a_form((field(b"model"), after)), a_form((before, after))):
        with contextlib.suppress(ApiError):
            find(body, B)


def test_a_value_that_is_empty_and_lines_that_only_begin_like_a_boundary_are_no_problem() -> None:
    body = a_form((field(b"prompt"), b""), (FILE, b"\r\n--xYzz\r\n\r\n--xY"), (field(b"model"), b"m"))

    assert find(b"preamble\r\n" + body + b"epilogue", B).model == "m"


def test_files_of_any_size_are_not_kept() -> None:
    reader = FormReader(B)
    reader.feed(a_form((field(b"model"), b"m"), (FILE, b""))[: -len(B) - 6])
    for _ in range(100):
        reader.feed(b"\r\n" * 5000)
        assert len(reader._left) < 100
    reader.feed(b"\r\n--" + B + b"--")

    assert reader.end().model == "m"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (a_form((field(b"model"), b"a"), (field(b"model"), b"b")), "more than once"),
        (
            a_form((field(b"stream"), b"a"), (field(b"model"), b"b"), (field(b"stream"), b"b")),
            "more than once",
        ),
        (a_form((field(b"file"), b"a")), "lacks"),
        (a_form((field(b"model"), b"\xff")), "UTF-8"),
        (a_form((field(b"model"), b"x" * 10_000)), "too long"),
        (a_form((field(b"mo%64el") + b";x=model", b"x")), "cannot be read for sure"),
        (a_form((b"Content-Disposition: form-data; name*=utf-8''model", b"x")), "cannot be read for sure"),
        (a_form((field(b"a") + b'; name="model"', b"x")), "cannot be read for sure"),
        (a_form((b"X: model", b"x")), "exactly one Content-Disposition"),
        (a_form((field(b"model") + b"\r\nContent-Transfer-Encoding: base64", b"bQ==")), "plain text"),
        (a_form((field(b"model"), b"m"))[:-6], "ends before"),
        (b"", "ends before"),
        (a_form((b"X: " + b"y" * 10_000, b"")), "too long headers"),
        (a_form(*[(field(b"a"), b"")] * 300), "more than 256 parts"),
        (a_form((field(b"model"), b"m\r\n--xYz\tn")), "boundary inside"),
        (b"--xYz\r\n" + field(b"model") + b"\r\n\r\n--xYz--\r\n", "begins with the boundary"),
        (a_form((FILE, b"--xYz\r\n" + field(b"model") + b"\r\n\r\nx")), "begins with the boundary"),
        (a_form((b"Content-Disposition: form-data;\r\n name=model", b"x")), "headers that cannot be read"),
        (a_form((b"X y: z\r\n" + field(b"model"), b"x")), "headers that cannot be read"),
        (a_form((field(b"model") + b"\nX: y", b"x")), "headers that cannot be read"),
        (a_form((field(b"model") + b"~", b"x")), "Content-Disposition that cannot be read"),
        (
            a_form((b"Content-Disposition: form-data;\tname=model", b"x")),
            "Content-Disposition that cannot be read",
        ),
        (
            a_form((b"Content-Disposition: attachment; name=model", b"x")),
            "Content-Disposition that cannot be read",
        ),
    ],
)
def test_each_fault_has_one_clear_error(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        find(body, B)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=xYz", b"xYz"),
        ('Multipart/Form-Data; charset=utf-8; boundary="x Yz"', b"x Yz"),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ("multipart/form-data", None),
        ("application/json; boundary=a", None),
    ],
)
def test_the_boundary_is_read_from_the_content_type(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary
