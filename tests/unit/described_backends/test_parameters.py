"""Parameters in the format that an engine wants."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.schemas.parameters import in_format

GIVEN = ("--a=1", "--b", "2", "--c 'x y'", "--flag", "-v", "positional", "--t", "-1", "--last")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("", GIVEN),
        (
            "words",
            (*("--a=1", "--b", "2", "--c", "x y", "--flag", "-v", "positional"), *("--t", "-1", "--last")),
        ),
        (
            "space",
            (*("--a", "1", "--b", "2", "--c", "x y", "--flag", "-v", "positional"), *("--t", "-1", "--last")),
        ),
        ("equal", (*("--a=1", "--b=2", "--c=x y", "--flag", "-v", "positional"), *("--t=-1", "--last"))),
    ],
)
def test_each_format(how: Literal["", "words", "space", "equal"], expected: tuple[str, ...]) -> None:
    assert in_format(GIVEN, how) == expected


@given(st.lists(st.from_regex(r"--[a-z]{1,5}(=[a-z0-9]{0,5})?", fullmatch=True)))
def test_a_format_is_final(given_: list[str]) -> None:
    for how in ("space", "equal"):
        once = in_format(given_, how)  # type: ignore[arg-type]
        assert in_format(once, how) == once or how == "equal"  # type: ignore[arg-type]
        assert "".join(once).replace("=", "") == "".join(given_).replace("=", "")
