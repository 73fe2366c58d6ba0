"""The scanner finds what a decoder finds, however the bytes are cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering.members import MAX_DEPTH, BadJson, Found, Scanner, Wanted, find

NAMES = ("model", "stream")
WANTED = Wanted.of(*NAMES)
TRICKY = st.sampled_from(
    [
        '"',
        "\\",
        "model",
        '"model"',
        '"model":',
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\\u",
        "é",
        "中",
        "😀",
        "\n",
        "stream",
    ]
)
TEXT = st.lists(TRICKY | st.text(max_size=2), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | TEXT, inner, max_size=4)
    ),
    max_leaves=10,
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def scan(document: bytes, cuts: Sequence[int]) -> dict[str, list[Found]]:
    scanner = Scanner(WANTED)
    places = [0, *sorted(cut for cut in cuts if cut < len(document)), len(document)]
    for start, end in itertools.pairwise(places):
        scanner.feed(document[start:end])
    scanner.end()
    return scanner.found


@given(
    st.lists(st.tuples(st.sampled_from(NAMES) | TEXT, JSON), max_size=5),
    st.booleans(),
    st.sampled_from(["", " ", "\n\t "]),
    CUTS,
)
def test_it_finds_each_member_that_a_decoder_finds(
    members: list[tuple[str, object]], ascii_only: bool, blank: str, cuts: list[int]
) -> None:
    text = f"{blank},{blank}".join(
        f"{json.dumps(name, ensure_ascii=ascii_only)}{blank}:{blank}{json.dumps(value, ensure_ascii=ascii_only)}"
        for name, value in members
    )
    try:
        document = f"{blank}{{{blank}{text}{blank}}}{blank}".encode()
        msgspec.json.decode(document)
    except (UnicodeEncodeError, ValueError):  # a lone surrogate has no UTF-8
        return

    found = scan(document, cuts)

    for name in NAMES:
        expected = [value for key, value in members if key == name]
        values = found.get(name, [])
        assert [json.loads(each.raw) for each in values] == expected
        assert all(document[each.start : each.end] == each.raw for each in values)


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([*'{}[]:," \\', "model", "u", "\\ud83d", "1", "null"])).map(
        lambda parts: "".join(parts).encode()
    ),
    CUTS,
)
def test_any_bytes_end_in_members_or_in_one_clear_error(document: bytes, cuts: list[int]) -> None:
    try:
        whole = find(document, *NAMES)
    except BadJson:
        whole = None
    try:
        pieces = scan(document, cuts)
    except BadJson:
        pieces = None

    assert whole == pieces
    try:
        document.decode()
        valid = isinstance(msgspec.json.decode(document), dict)
    except (ValueError, RecursionError):
        valid = False
    assert whole is not None or not valid, "a valid object was refused"


@pytest.mark.parametrize("written", [r'"mod\u0065l"', r'"\u006D\u006fd\u0065\u006C"', '"model"'])
def test_a_name_counts_however_it_is_written(written: str) -> None:
    document = f'{{"a": {written}, {written} : "x"}}'.encode()

    assert [each.raw for each in find(document, "model")["model"]] == [b'"x"']
    for cut in range(len(document)):
        assert scan(document, [cut]) == find(document, "model")


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "must be a JSON object"),
        (b'\xef\xbb\xbf{"model":"x"}', "byte order mark"),
        (b'{"model":"x"', "ends before"),
        (b'{"a":"', "ends before"),
        (b'{"model":', "ends before"),
        (b'{"model":"x"}}', "goes on after"),
        (b'{"model":"x"} x', "goes on after|no JSON"),
        (b'{"model":"x"}{"model":"y"}', "goes on after"),
        (b'{"model":"x"}"y"', "goes on after"),
        (b'{"model":"x"}"y', "goes on after"),
        (b'{"model":"x"}"}', "goes on after"),
        (b'{"a":NaN}', "'NaN' is no JSON"),
        (b'{"a":Infinity}', "no JSON"),
        (b"{'a':1}", "no JSON"),
        (b'{"a":1 /* "model" */}', "no JSON"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\xc3', "not valid UTF-8"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":"\\udc00"}', "surrogate"),
        (b'{"a":"\\ud83d\\"\\ude00"}', "surrogate"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested too deeply"),
        (b'{"model":"' + b"x" * 200_000 + b'"}', "too long"),
        (b'{"model":' + b" " * 200_000 + b'"x"}', "too long"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(document: bytes, complaint: str) -> None:
    with pytest.raises(BadJson, match=complaint):
        find(document, "model")


def test_the_deepest_that_is_taken_is_taken() -> None:
    depth = MAX_DEPTH - 1

    assert find(b'{"a":' + b"[" * depth + b"]" * depth + b',"model":1}', "model")["model"]


def test_escapes_and_surrogate_pairs_may_be_cut_anywhere() -> None:
    document = json.dumps({"a": '😀\\" \\\\ "model": \\ud800 中' * 3, "model": "x\\"}).encode()

    for first in range(len(document)):
        for second in range(first, min(first + 15, len(document))):
            assert json.loads(scan(document, [first, second])["model"][0].raw) == "x\\"
